// A fuzzer's bytes as a source of small numbers and data; zeros when they are used up.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace miniray::fuzz {

class Input {
 public:
  Input(const uint8_t* bytes, size_t size) : at_(bytes), left_(size) {}

  bool empty() const { return left_ == 0; }
  void read(void* to, size_t length) {
    size_t have = std::min(length, left_);
    std::memset(to, 0, length);
    std::memcpy(to, at_, have);
    at_ += have;
    left_ -= have;
  }
  template <typename T>
  T take() {
    T value;
    read(&value, sizeof(value));
    return value;
  }
  uint64_t below(uint64_t bound) { return take<uint32_t>() % bound; }

 private:
  const uint8_t* at_;
  size_t left_;
};

}  // namespace miniray::fuzz
