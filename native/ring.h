// Single-producer single-consumer byte ring of frames in shared memory.
//
//        head (consumer)          tail (producer)
//          ▼                        ▼
//   ┌──────┬────────┬───────┬───────┬──────────┐   frame = FrameHeader + payload, padded to 8;
//   │ free │ frame  │ frame │ frame │   free   │   a payload may wrap, a FrameHeader never does
//   └──────┴────────┴───────┴───────┴──────────┘
//
// A frame exists once `tail` has passed it: a producer that dies half-way has published nothing.
// Each side keeps a private copy of the other's offset and reads the shared one only when that
// copy says full or empty, so the cache lines stay with their writers.
//
// `tail` and `head` are stored seq_cst, not just release: after storing one, the writer looks at a
// flag (the consumer's ready bit; the producer's `wanted`) that the other side sets before it looks
// at the offset. Sequential consistency lets at most one of the two miss the other's news.
//
// The other side may be broken or hostile: every number of its making is looked at before it is used,
// and used from a private copy. Offsets that make no sense are no room, or `corrupt`.
#pragma once

#include <algorithm>
#include <cstring>

#include "layout.h"

namespace miniray {

constexpr uint64_t frame_bytes(uint64_t length) { return sizeof(FrameHeader) + (length + 7) / 8 * 8; }

// Lives in the producing process.
class Producer {
 public:
  // False: the offsets make no sense.
  bool open(RingState* state, uint8_t* bytes, uint32_t capacity) {
    state_ = state;
    bytes_ = bytes;
    capacity_ = capacity;
    tail_ = head_ = state->tail.load(std::memory_order_relaxed);
    return tail_ % sizeof(FrameHeader) == 0 && look(std::memory_order_acquire);
  }

  // Writes behind the tail; nothing is visible until publish(). False: no room.
  bool write(const void* data, uint32_t length, bool more) {
    uint64_t need = frame_bytes(length);
    if (!fits(need)) {
      if (!look(std::memory_order_acquire) || !fits(need)) return false;  // partner: Consumer::release
    }
    FrameHeader header{length, more};
    std::memcpy(at(tail_), &header, sizeof(header));
    uint64_t from = tail_ + sizeof(header);
    uint64_t first = std::min<uint64_t>(length, capacity_ - (from & (capacity_ - 1)));
    if (first) std::memcpy(at(from), data, first);
    if (first < length) std::memcpy(bytes_, static_cast<const uint8_t*>(data) + first, length - first);
    tail_ += need;
    return true;
  }
  void publish() { state_->tail.store(tail_, std::memory_order_seq_cst); }  // partner: Consumer::next

  // After a refused write: asks to be told when there is room. False: there is room by now.
  bool want_room(uint32_t length) {
    uint64_t need = frame_bytes(length);
    state_->wanted.store(static_cast<uint32_t>(need), std::memory_order_seq_cst);
    if (!look(std::memory_order_seq_cst) || !fits(need)) return true;  // partner: Consumer::release
    state_->wanted.store(0, std::memory_order_relaxed);
    return false;
  }
  bool still_waiting() const { return state_->wanted.load(std::memory_order_acquire) != 0; }

 private:
  // Takes the consumer's offset, unless it has passed what was written.
  bool look(std::memory_order order) {
    uint64_t head = state_->head.load(order);
    if (tail_ - head > capacity_) return false;
    head_ = head;
    return true;
  }
  bool fits(uint64_t need) const { return tail_ + need - head_ <= capacity_; }
  uint8_t* at(uint64_t offset) const { return bytes_ + (offset & (capacity_ - 1)); }

  RingState* state_ = nullptr;
  uint8_t* bytes_ = nullptr;
  uint64_t capacity_ = 0, head_ = 0, tail_ = 0;
};

// Lives in the consuming process.
class Consumer {
 public:
  enum class Next { frame, empty, corrupt };

  // False: the offset makes no sense.
  bool open(RingState* state, const uint8_t* bytes, uint32_t capacity) {
    state_ = state;
    bytes_ = bytes;
    capacity_ = capacity;
    tail_ = head_ = state->head.load(std::memory_order_relaxed);  // next() looks at the producer's
    return head_ % sizeof(FrameHeader) == 0;
  }

  // The frame at the head, if any. `corrupt`: the producer's numbers make no sense.
  Next next(FrameHeader* header) {
    if (head_ == tail_) {
      tail_ = state_->tail.load(std::memory_order_seq_cst);  // partner: Producer::publish
      if (head_ == tail_) return Next::empty;
      if (tail_ - head_ > capacity_ || tail_ % sizeof(FrameHeader)) {
        tail_ = head_;
        return Next::corrupt;
      }
    }
    std::memcpy(header, at(head_), sizeof(*header));
    return frame_bytes(header->length) <= tail_ - head_ ? Next::frame : Next::corrupt;
  }
  void copy(void* to, uint32_t length) const {
    uint64_t from = head_ + sizeof(FrameHeader);
    uint64_t first = std::min<uint64_t>(length, capacity_ - (from & (capacity_ - 1)));
    if (first) std::memcpy(to, at(from), first);
    if (first < length) std::memcpy(static_cast<uint8_t*>(to) + first, bytes_, length - first);
  }
  void skip(uint32_t length) { head_ += frame_bytes(length); }

  // Gives what was skipped back to the producer. True: it waits for room, has it now, and must be
  // told. Room for the wanted frame alone would wake it for each; half a ring makes it worth it.
  bool release() {
    state_->head.store(head_, std::memory_order_seq_cst);  // partner: Producer::write, want_room
    uint32_t wanted = state_->wanted.load(std::memory_order_seq_cst);
    if (wanted == 0) return false;
    uint64_t room = capacity_ - (state_->tail.load(std::memory_order_relaxed) - head_);
    if (room < std::max<uint64_t>(wanted, capacity_ / 2)) return false;
    state_->wanted.store(0, std::memory_order_release);  // partner: Producer::still_waiting
    return true;
  }

 private:
  const uint8_t* at(uint64_t offset) const { return bytes_ + (offset & (capacity_ - 1)); }

  RingState* state_ = nullptr;
  const uint8_t* bytes_ = nullptr;
  uint64_t capacity_ = 0, head_ = 0, tail_ = 0;
};

}  // namespace miniray
