// How a process learns that one of its channels has news: bits in its client record, and a futex
// word for when it sleeps.
//
//   producer  ring:   offset stored → bit in ready[] → bit in summary → asleep? wake it
//   consumer  collect: summary cleared → ready[] cleared → rings read
//             sleep:  `sleep` := epoch, asleep → any bit? → futex wait
//
// All of these are sequentially consistent, so a producer that sees the consumer awake has set its
// bit before the consumer's last look. A producer that finds its bit still set need do nothing: the
// consumer has yet to clear it, and will read the ring after that.
//
// `sleep` is epoch << 2 | kKnocked | kAsleep. A producer marks it kKnocked, which stops a consumer
// that is about to enter the futex wait, then wakes. It does so once per epoch and keeps that to
// itself: a producer that is stopped or dies between the two steps cannot keep others from waking.
#pragma once

#include "futex.h"
#include "layout.h"

namespace miniray {

constexpr uint32_t kAsleep = 1, kKnocked = 2, kEpochShift = 2;
constexpr uint32_t kNeverKnocked = ~0u;

// Wakes the owner of `record` if it sleeps. `knocked_epoch` is the caller's own, per consumer.
inline void knock(ClientRecord& record, uint32_t* knocked_epoch) {
  uint32_t word = record.sleep.load(std::memory_order_seq_cst);
  while ((word & (kAsleep | kKnocked)) == kAsleep &&
         !record.sleep.compare_exchange_weak(word, word | kKnocked)) {
  }
  if (!(word & kAsleep) || *knocked_epoch == word >> kEpochShift) return;
  futex_wake(record.sleep);
  *knocked_epoch = word >> kEpochShift;
}

// Tells the owner of `record` that its channel number `channel` has news. The caller has stored the
// news seq_cst, and is the only process that sets this bit.
inline void ring(ClientRecord& record, uint32_t channel, uint32_t* knocked_epoch) {
  std::atomic<uint64_t>& ready = record.ready[channel / 64];
  uint64_t bit = 1ull << (channel % 64);
  if (ready.load(std::memory_order_seq_cst) & bit) return;
  ready.fetch_or(bit, std::memory_order_seq_cst);
  record.summary.fetch_or(1ull << (channel / 64), std::memory_order_seq_cst);
  knock(record, knocked_epoch);
}

// The consumer's side. One thread at a time collects and sleeps; wake() comes from any.
class Doorbell {
 public:
  void open(ClientRecord* record) { record_ = record; }
  ClientRecord& record() const { return *record_; }

  // Something to collect, or wake() was called.
  bool rung() const {
    return record_->summary.load(std::memory_order_acquire) != 0 || woken_.load(std::memory_order_acquire);
  }
  bool take_wake() { return woken_.load(std::memory_order_relaxed) && woken_.exchange(false); }

  void wake() {
    woken_.store(true, std::memory_order_seq_cst);
    uint32_t never = kNeverKnocked;
    knock(*record_, &never);
  }

  // Spins until rung, or `spin_ns` (or the time to `deadline_ns`) are over; returns whether it is rung.
  bool spin(int64_t spin_ns, int64_t deadline_ns = -1) const {
    if (rung()) return true;
    if (spin_ns <= 0) return false;
    int64_t until = monotonic_ns() + spin_ns;
    if (deadline_ns >= 0 && deadline_ns < until) until = deadline_ns;
    do {
      for (int i = 0; i < 16; ++i) {
        cpu_relax();
        if (rung()) return true;
      }
    } while (monotonic_ns() < until);
    return false;
  }

  // Spins for `spin_ns`, then sleeps until rung or `deadline_ns`. Returns 0 (look at rung()),
  // ETIMEDOUT or EINTR. Runs without the GIL.
  int wait(int64_t spin_ns, int64_t deadline_ns) {
    if (spin(spin_ns, deadline_ns)) return 0;
    uint32_t epoch =
        ((record_->sleep.load(std::memory_order_relaxed) >> kEpochShift) + 1) & (~0u >> kEpochShift);
    uint32_t asleep = epoch << kEpochShift | kAsleep;
    record_->sleep.store(asleep, std::memory_order_seq_cst);
    int rc = 0;
    if (!woken_.load(std::memory_order_seq_cst) && !any_ready()) {
      rc = futex_wait(record_->sleep, asleep, deadline_ns);
      if (rc == EAGAIN) rc = 0;
    }
    record_->sleep.store(epoch << kEpochShift, std::memory_order_relaxed);
    return rc;
  }

 private:
  // Looks at all bits, not just the summary: a producer may have died between setting the two.
  bool any_ready() {
    uint64_t summary = 0;
    for (uint32_t w = 0; w < kMaxChannels / 64; ++w)
      if (record_->ready[w].load(std::memory_order_seq_cst)) summary |= 1ull << w;
    if (summary) record_->summary.fetch_or(summary, std::memory_order_seq_cst);
    return summary != 0;
  }

  ClientRecord* record_ = nullptr;
  std::atomic<bool> woken_{false};
};

}  // namespace miniray
