// The node's object store: one segment, and what a client does with it.
//
//   Segment   the mapping: all of it read-write, the heap once more read-only for readers' views.
//             Counted references: each view holds one, so memory is never unmapped under a view.
//   Client    one process's record in the segment: allocate, seal, pin, delete. No global state, so
//             several clients may live in one process (the stress test runs them as threads).
//
// Life of an object:  put = allocate (mutex) → copy → seal;   get = find, pin;   delete → unpin →
// the last unpin gives the memory back (mutex). Nobody talks to another process for any of it.
//
// Death: the mutex is robust. Whoever meets EOWNERDEAD rebuilds heap and index from the entries'
// words, which each change in one store. What a dead client left behind (pins, unsealed objects) is
// given back by the raylet with reap().
//
// Threads: get, unpin and the local pin counts of one Client need outside serialisation (the GIL);
// allocate, seal, abort, erase, wait do not. A call that may need the mutex takes a Wait: `no`
// returns Status::busy instead of blocking, so that callers can drop the GIL before they block.
#pragma once

#include <string>

#include "arena.h"
#include "layout.h"
#include "table.h"

namespace miniray {

enum class Status {
  ok,
  busy,     // Wait::no, and the mutex is taken
  stuck,    // the mutex was not to be had within the lock timeout
  broken,   // the segment is inconsistent beyond repair
  absent,   // no such object
  exists,   // a live object has this id
  full,     // no free block is large enough
  no_slot,  // the table is full
  refused,  // not yours, or not in that state
  reaped,   // the raylet took this client for dead and gave its record back
  reclaim,  // call reclaim(slot), then ask again
};

enum class Wait { no, yes };

class Segment {
 public:
  // nullptr with errno. `max_clients` is rounded up to a multiple of 64; `slots` 0 = by capacity.
  static Segment* create(uint64_t capacity, uint32_t slots, uint32_t max_clients);
  static Segment* attach(int fd);  // duplicates fd; EINVAL if it is no segment of this version

  void hold() { references_.fetch_add(1, std::memory_order_relaxed); }
  void drop();

  int fd() const { return fd_; }
  Header& header() const { return *reinterpret_cast<Header*>(base_); }
  ClientRecord& client(uint32_t slot) const;
  uint32_t* scratch() const { return reinterpret_cast<uint32_t*>(base_ + header().scratch_at); }
  uint8_t* heap() const { return base_ + header().heap_at; }
  const uint8_t* view() const { return view_; }  // the heap, read-only

 private:
  Segment() = default;
  bool map();

  int fd_ = -1;
  uint8_t* base_ = nullptr;
  uint8_t* view_ = nullptr;
  size_t bytes_ = 0, heap_bytes_ = 0;
  std::atomic<uint32_t> references_{1};
};

struct ObjectInfo {
  uint8_t id[kIdSize];
  uint64_t size, touched;
  uint32_t creator;
  State state;
  bool primary;
};

struct StoreStats {
  uint64_t capacity, used, free, objects, largest_free, cold, rebuilds;
  uint32_t clients;
};

struct Reaped {
  uint64_t pins = 0, aborted = 0;
};

class Client {
 public:
  // Takes over the caller's reference to `segment`. `slot` must be reserved (or kRaylet, once):
  // nullptr with errno EBUSY otherwise.
  static Client* open(Segment* segment, uint32_t slot);
  void hold() { references_.fetch_add(1, std::memory_order_relaxed); }
  void drop();
  void close();  // no further calls but unpin and reclaim; the record is given up if nothing is pinned

  Segment& segment() const { return *segment_; }
  Table& table() { return table_; }
  ClientRecord& record() const { return segment_->client(slot_); }
  uint32_t slot() const { return slot_; }
  uint32_t forks() const { return forks_; }
  int64_t lock_timeout_ns = -1;  // negative: wait for ever

  // For the caller's use (see StoreCall): calls in progress, and whether the last one drops.
  uint32_t calls = 0;
  bool left = false;

  // A new unsealed object. `*data` is where to write it (64-byte aligned, in this process).
  Status allocate(const Id& id, uint64_t size, bool primary, uint32_t* slot, uint8_t** data, Wait wait);
  Status seal(uint32_t slot);  // wakes those who wait for it
  Status abort(uint32_t slot, Wait wait);
  Status erase(const Id& id, Wait wait);
  Status find(const Id& id, uint32_t* slot, uint64_t* word, Wait wait);

  Status get(const Id& id, uint32_t* slot, Wait wait);  // sealed objects; pins
  Status pin_own(uint32_t slot);                        // an unsealed object of this client
  bool unpin(uint32_t slot);                            // true: reclaim(slot) is due
  Status reclaim(uint32_t slot, Wait wait);             // frees a deleted object nobody pins

  // Sleeps until `seen` is no longer the number of seals, for ids whose bits are in `bits`.
  uint32_t seals() const { return segment_->header().seal_word.load(std::memory_order_seq_cst); }
  int wait_seal(uint32_t seen, uint32_t bits, int64_t deadline_ns);
  static uint32_t seal_bit(const Id& id) { return 1u << (id.hash() >> 59); }
  void waiting(bool on);  // this client sleeps in wait_seal (or is about to)

  Status stats(StoreStats* stats, Wait wait);
  uint64_t pinned_bytes() const;
  bool info(uint32_t slot, ObjectInfo* info) const;  // false: no object there
  Status check(std::string* wrong, Wait wait);
  uint32_t holder() const { return segment_->header().holder.load(std::memory_order_relaxed); }

  // A client record has one doorbell, hence one mailbox. False: it is taken.
  bool take_bell() { return !has_bell_.exchange(true); }
  void give_bell() { has_bell_.store(false); }

  // For the raylet.
  Status reserve_client(uint32_t* slot, Wait wait);                             // no_slot: all taken
  Status reap(uint32_t slot, Reaped* reaped, ObjectInfo** aborted, Wait wait);  // free(*aborted)
  uint64_t prefault(uint64_t bytes);
  uint64_t punch(uint64_t keep);

 private:
  Client() = default;
  Status lock(Wait wait);
  void unlock();
  void sweep();
  bool rebuild();
  void free_entry(uint32_t slot);
  bool owns_record() const { return record().epoch.load(std::memory_order_relaxed) == epoch_; }
  Status reap_range(uint32_t from, uint32_t to, uint32_t client, Reaped* reaped, ObjectInfo** aborted);

  Segment* segment_ = nullptr;
  Table table_;
  Arena arena_{nullptr, nullptr};
  uint32_t slot_ = 0, epoch_ = 0, forks_ = 0;
  uint32_t* views_ = nullptr;  // per slot: this process's views; the pin bit stands for all of them
  uint64_t pinned_slots_ = 0;
  std::atomic<bool> unreclaimed_{false};  // a reclaim() failed: the next holder sweeps
  std::atomic<bool> has_bell_{false};
  std::atomic<uint32_t> waiters_{0};
  std::atomic<uint32_t> references_{1};
};

}  // namespace miniray
