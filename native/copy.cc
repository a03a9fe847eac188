#include "copy.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <system_error>
#include <thread>

namespace miniray {
namespace {

constexpr size_t kChunk = 2u << 20;  // threads take turns by chunks: a core that is busy takes fewer
constexpr unsigned kMaxThreads = 4;

unsigned allowed_cores() {
  cpu_set_t cores;
  return sched_getaffinity(0, sizeof(cores), &cores) == 0 ? static_cast<unsigned>(CPU_COUNT(&cores)) : 1;
}

// Copies bytes [from, to) of the concatenation.
void copy_range(uint8_t* target, const Part* parts, size_t from, size_t to) {
  size_t start = 0;  // of the part in the concatenation
  for (; from < to; start += parts++->bytes) {
    size_t end = start + parts->bytes;
    if (from >= end) continue;
    size_t bytes = std::min(to, end) - from;
    std::memcpy(target + from, static_cast<const uint8_t*>(parts->data) + (from - start), bytes);
    from += bytes;
  }
}

}  // namespace

void copy_parts(uint8_t* to, const Part* parts, size_t count, size_t total) {
  if (total < kParallelCopyBytes) {
    for (size_t i = 0; i < count; to += parts[i++].bytes)
      if (parts[i].bytes) std::memcpy(to, parts[i].data, parts[i].bytes);
    return;
  }
  std::atomic<size_t> next{0};
  auto work = [&] {
    for (size_t from; (from = next.fetch_add(kChunk, std::memory_order_relaxed)) < total;)
      copy_range(to, parts, from, std::min(from + kChunk, total));
  };
  std::thread helpers[kMaxThreads - 1];
  unsigned wanted = std::min(kMaxThreads, allowed_cores()) - 1;
  try {
    for (unsigned i = 0; i < wanted; ++i) helpers[i] = std::thread(work);
  } catch (const std::system_error&) {
    // No more threads to be had: those that run, and this one, do it all.
  }
  work();
  for (std::thread& helper : helpers)
    if (helper.joinable()) helper.join();
}

}  // namespace miniray
