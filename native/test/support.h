// Small helpers of the C++ tests: an assertion that names itself, patterned payloads, a random
// generator with a printed seed.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "../channel.h"
#include "../store.h"

#define CHECK(condition)                                                           \
  do {                                                                             \
    if (!(condition)) {                                                            \
      std::fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                \
    }                                                                              \
  } while (0)

namespace miniray::test {

inline Id make_id(uint64_t n) {
  uint8_t bytes[kIdSize] = {};
  std::memcpy(bytes, &n, sizeof(n));
  bytes[kIdSize - 1] = 1;
  return Id(bytes);
}

// Bytes that tell which object they belong to: a stale or foreign byte shows.
inline uint8_t pattern(uint64_t n, uint64_t at) { return static_cast<uint8_t>(n * 131 + at * 7 + at / 251); }

inline void fill(uint8_t* data, uint64_t n, uint64_t size) {
  for (uint64_t i = 0; i < size; ++i) data[i] = pattern(n, i);
}

inline bool intact(const uint8_t* data, uint64_t n, uint64_t size) {
  for (uint64_t i = 0; i < size; ++i)
    if (data[i] != pattern(n, i)) return false;
  return true;
}

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e37'79b9'7f4a'7c15ull + 1) {}
  uint64_t below(uint64_t bound) {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return state_ % bound;
  }

 private:
  uint64_t state_;
};

// Stores object `n` of `size` bytes; false if it exists or does not fit.
inline bool put(Client& client, uint64_t n, uint64_t size) {
  uint32_t slot;
  uint8_t* data;
  Status status = client.allocate(make_id(n), size, true, &slot, &data, Wait::yes);
  if (status == Status::exists || status == Status::full || status == Status::no_slot) return false;
  CHECK(status == Status::ok);
  fill(data, n, size);
  CHECK(client.seal(slot) == Status::ok);
  return true;
}

// Pins object `n`; kNoSlot if it is absent.
inline uint32_t pin(Client& client, uint64_t n) {
  for (;;) {
    uint32_t slot;
    Status status = client.get(make_id(n), &slot, Wait::yes);
    if (status == Status::absent) return kNoSlot;
    if (status == Status::ok) return slot;
    CHECK(status == Status::reclaim);
    CHECK(client.reclaim(slot, Wait::yes) == Status::ok);
  }
}

inline void unpin(Client& client, uint32_t slot) {
  if (client.unpin(slot)) CHECK(client.reclaim(slot, Wait::yes) == Status::ok);
}

// The pinned object in `slot` has the bytes of object `n`.
inline bool pinned_intact(Client& client, uint32_t slot, uint64_t n) {
  const Entry& entry = client.table().entry(slot);
  return intact(client.segment().view() + entry.offset.load(), n, entry.size.load());
}

inline void check_store(Client& client) {
  std::string wrong;
  CHECK(client.check(&wrong, Wait::yes) == Status::ok);
  if (!wrong.empty()) std::fprintf(stderr, "check: %s\n", wrong.c_str());
  CHECK(wrong.empty());
}

inline StoreStats stats_of(Client& client) {
  StoreStats stats;
  CHECK(client.stats(&stats, Wait::yes) == Status::ok);
  return stats;
}

inline Reaped reap(Client& raylet, uint32_t slot) {
  Reaped reaped;
  ObjectInfo* aborted = nullptr;
  CHECK(raylet.reap(slot, &reaped, &aborted, Wait::yes) == Status::ok);
  std::free(aborted);
  return reaped;
}

}  // namespace miniray::test
