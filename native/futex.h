// Futex calls on words in shared memory. Never the _PRIVATE variants: the waker is another process
// (and libstdc++'s atomic::wait is private, which is why it is not used).
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <climits>
#include <cstdint>

namespace miniray {

inline int64_t monotonic_ns() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1'000'000'000ll + now.tv_nsec;
}

// Sleeps while `word` is `expected`, until `deadline_ns` on CLOCK_MONOTONIC (negative: no
// deadline). `bits` picks which wakes count. Returns 0, or EAGAIN, EINTR, ETIMEDOUT. A deadline that
// has passed makes no system call: the kernel's timer slack would stretch it to 50 µs.
inline int futex_wait(std::atomic<uint32_t>& word, uint32_t expected, int64_t deadline_ns,
                      uint32_t bits = FUTEX_BITSET_MATCH_ANY) {
  timespec at{};
  if (deadline_ns >= 0) {
    if (monotonic_ns() >= deadline_ns) return ETIMEDOUT;
    at.tv_sec = deadline_ns / 1'000'000'000;
    at.tv_nsec = deadline_ns % 1'000'000'000;
  }
  long rc =
      syscall(SYS_futex, &word, FUTEX_WAIT_BITSET, expected, deadline_ns >= 0 ? &at : nullptr, nullptr, bits);
  return rc == 0 ? 0 : errno;
}

inline void futex_wake(std::atomic<uint32_t>& word, uint32_t bits = FUTEX_BITSET_MATCH_ANY) {
  syscall(SYS_futex, &word, FUTEX_WAKE_BITSET, INT_MAX, nullptr, nullptr, bits);
}

inline void cpu_relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb" ::: "memory");
#endif
}

}  // namespace miniray
