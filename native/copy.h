// Copies parts one behind the other; large totals with several threads, as one core does not fill
// the memory bus. Returns when all is copied. Takes no lock, so the caller drops the GIL first.
#pragma once

#include <cstddef>
#include <cstdint>

namespace miniray {

struct Part {
  const void* data;
  size_t bytes;
};

constexpr size_t kParallelCopyBytes = 16u << 20;  // from here on threads pay for their start

void copy_parts(uint8_t* to, const Part* parts, size_t count, size_t total);

}  // namespace miniray
