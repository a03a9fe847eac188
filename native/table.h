// The object table: a fixed number of entries, found by id without a lock, pinned without a count.
//
// An entry's pins are one bit per client, in a row beside the table. Each bit belongs to one client
// (a process counts its own views privately), so when a client dies nothing has to be guessed: the
// raylet clears that client's bits. Pinning follows the hazard pointer's rule:
//
//   reader:  find → set own bit → look at `word` again: unchanged? pinned : clear bit, search anew
//   deleter: word := deleting → look at the row: empty? free the entry : whoever clears the last
//            bit sees `deleting` and frees it
//
// All four accesses are sequentially consistent, so at least one side sees the other.
//
// Contract: insert, remove and rebuild_index need the segment's mutex; all else is lock-free.
// `slot` is an entry's index. Ids are kIdSize bytes.
#pragma once

#include "layout.h"

namespace miniray {

constexpr uint32_t kNoSlot = ~0u;

constexpr State state_of(uint64_t word) { return static_cast<State>(word & 0xff); }
constexpr uint64_t with_state(uint64_t word, State state) {
  return (word & ~0xffull) | static_cast<uint64_t>(state);
}

// An id as words, ready to be compared and hashed.
struct Id {
  uint64_t head[3];
  uint32_t tail;
  explicit Id(const void* bytes);
  uint64_t hash() const;
};

enum class Found { yes, no, rebuilding };

class Table {
 public:
  Table() = default;
  explicit Table(uint8_t* segment);

  // A live (unsealed or sealed) entry. `rebuilding`: take and give back the mutex, then ask again.
  Found find(const Id& id, uint32_t* slot, uint64_t* word) const;

  // A free entry filled in and published as unsealed; kNoSlot when the table is full.
  uint32_t insert(const Id& id, uint64_t offset, uint64_t size, uint32_t creator, bool primary);
  // Gives a `deleting` entry back. Its block is the caller's to release, afterwards.
  void remove(uint32_t slot);
  // Makes buckets and free list anew from the entries' words.
  void rebuild_index();

  Entry& entry(uint32_t slot) const { return entries_[slot]; }
  uint32_t used() const { return header_->entries_used.load(std::memory_order_acquire); }
  void id_of(uint32_t slot, uint8_t* bytes) const;
  bool matches(const Entry& entry, const Id& id) const;

  // The pin bit of one client; seq_cst, see above. clear_pin says whether the bit was set.
  void set_pin(uint32_t slot, uint32_t client) const;
  bool clear_pin(uint32_t slot, uint32_t client) const;
  bool has_pin(uint32_t slot, uint32_t client) const;
  bool pinned(uint32_t slot) const;  // by anybody

 private:
  std::atomic<uint64_t>* row(uint32_t slot) const { return pins_ + size_t{slot} * pin_words_; }
  Bucket& bucket_of(const Id& id) const { return buckets_[id.hash() & (header_->buckets - 1)]; }
  void link(uint32_t slot, Bucket& bucket);

  Header* header_ = nullptr;
  Bucket* buckets_ = nullptr;
  Entry* entries_ = nullptr;
  std::atomic<uint64_t>* pins_ = nullptr;
  uint32_t pin_words_ = 0;
};

}  // namespace miniray
