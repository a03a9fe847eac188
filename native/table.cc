#include "table.h"

#include <cstring>

namespace miniray {
namespace {

using std::memory_order_acquire;
using std::memory_order_relaxed;
using std::memory_order_release;
using std::memory_order_seq_cst;

uint64_t fold(uint64_t a, uint64_t b) {
  unsigned __int128 product = static_cast<unsigned __int128>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

}  // namespace

Id::Id(const void* bytes) {
  std::memcpy(head, bytes, 24);
  std::memcpy(&tail, static_cast<const uint8_t*>(bytes) + 24, 4);
}

uint64_t Id::hash() const {
  return fold(head[0] ^ 0x9e37'79b9'7f4a'7c15ull, head[1] ^ 0xc2b2'ae3d'27d4'eb4full) ^
         fold(head[2] ^ 0x1656'67b1'9e37'79f9ull, tail ^ 0x2745'937f'85eb'ca6bull);
}

Table::Table(uint8_t* segment)
    : header_(reinterpret_cast<Header*>(segment)),
      buckets_(reinterpret_cast<Bucket*>(segment + header_->buckets_at)),
      entries_(reinterpret_cast<Entry*>(segment + header_->entries_at)),
      pins_(reinterpret_cast<std::atomic<uint64_t>*>(segment + header_->pins_at)),
      pin_words_(header_->max_clients / 64) {}

// The acquire loads keep the caller's second look at `word` behind them (insert stores with
// release, behind the word it replaces): the pattern of a sequence lock.
bool Table::matches(const Entry& entry, const Id& id) const {
  return entry.id_tail.load(memory_order_acquire) == id.tail &&
         entry.id[0].load(memory_order_acquire) == id.head[0] &&
         entry.id[1].load(memory_order_acquire) == id.head[1] &&
         entry.id[2].load(memory_order_acquire) == id.head[2];
}

void Table::id_of(uint32_t slot, uint8_t* bytes) const {
  const Entry& entry = entries_[slot];
  for (int i = 0; i < 3; ++i) {
    uint64_t part = entry.id[i].load(memory_order_acquire);
    std::memcpy(bytes + 8 * i, &part, 8);
  }
  uint32_t tail = entry.id_tail.load(memory_order_acquire);
  std::memcpy(bytes + 24, &tail, 4);
}

Found Table::find(const Id& id, uint32_t* slot, uint64_t* word) const {
  const Bucket& bucket = bucket_of(id);
  for (;;) {
    uint64_t rebuilds = header_->rebuilds.load(memory_order_acquire);
    uint64_t start = bucket.word.load(memory_order_acquire);  // partner: link, remove (release)
    uint32_t steps = 0;
    for (uint32_t at = static_cast<uint32_t>(start); at != 0 && steps <= header_->slots; ++steps) {
      const Entry& entry = entries_[at - 1];
      uint64_t seen = entry.word.load(memory_order_acquire);
      State state = state_of(seen);
      if ((state == State::sealed || state == State::unsealed) && matches(entry, id) &&
          entry.word.load(memory_order_acquire) == seen) {
        *slot = at - 1;
        *word = seen;
        return Found::yes;
      }
      at = entry.next.load(memory_order_acquire);
    }
    // Nothing found counts only if no entry left this bucket meanwhile: an entry that did may have
    // been used again and have led us into another bucket.
    if (rebuilds & 1) return Found::rebuilding;
    if (header_->rebuilds.load(memory_order_acquire) == rebuilds &&
        bucket.word.load(memory_order_acquire) >> 32 == start >> 32)
      return Found::no;
  }
}

void Table::link(uint32_t slot, Bucket& bucket) {
  uint64_t word = bucket.word.load(memory_order_relaxed);
  entries_[slot].next.store(static_cast<uint32_t>(word), memory_order_release);
  bucket.word.store((word & ~0xffff'ffffull) | (slot + 1), memory_order_release);
}

uint32_t Table::insert(const Id& id, uint64_t offset, uint64_t size, uint32_t creator, bool primary) {
  uint32_t slot;
  if (header_->free_entry != 0) {
    slot = header_->free_entry - 1;
    header_->free_entry = entries_[slot].next.load(memory_order_relaxed);
  } else {
    slot = header_->entries_used.load(memory_order_relaxed);
    if (slot == header_->slots) return kNoSlot;
    header_->entries_used.store(slot + 1, memory_order_release);
  }
  Entry& entry = entries_[slot];
  for (int i = 0; i < 3; ++i) entry.id[i].store(id.head[i], memory_order_release);
  entry.id_tail.store(id.tail, memory_order_release);
  entry.offset.store(offset, memory_order_release);
  entry.size.store(size, memory_order_release);
  entry.creator.store(creator, memory_order_release);
  entry.primary.store(primary, memory_order_release);
  entry.touched.store(header_->clock.fetch_add(1, memory_order_relaxed), memory_order_relaxed);
  // From this store on the object exists; a death before it leaves a free entry and a free block.
  uint64_t word = with_state(entry.word.load(memory_order_relaxed), State::unsealed);
  entry.word.store(word, memory_order_release);
  link(slot, bucket_of(id));
  ++header_->objects;
  return slot;
}

void Table::remove(uint32_t slot) {
  uint8_t bytes[kIdSize];
  id_of(slot, bytes);
  Bucket& bucket = bucket_of(Id(bytes));
  Entry& entry = entries_[slot];
  uint32_t next = entry.next.load(memory_order_relaxed);
  uint64_t word = bucket.word.load(memory_order_relaxed);
  uint32_t head = static_cast<uint32_t>(word);
  if (head == slot + 1) {
    head = next;
  } else {
    Entry* before = &entries_[head - 1];
    while (before->next.load(memory_order_relaxed) != slot + 1)
      before = &entries_[before->next.load(memory_order_relaxed) - 1];
    before->next.store(next, memory_order_release);
  }
  // Counted when no way leads here any more, and before the entry can be used again: whoever is on
  // it now has started with the old count, and whoever starts with the new one does not get here.
  bucket.word.store(((word >> 32) + 1) << 32 | head, memory_order_release);
  // From this store on the entry and its block are free. The generation grows.
  uint64_t old = entry.word.load(memory_order_relaxed);
  entry.word.store(with_state(old + 0x100, State::free), memory_order_seq_cst);
  entry.next.store(header_->free_entry, memory_order_release);
  header_->free_entry = slot + 1;
  --header_->objects;
}

void Table::rebuild_index() {
  for (uint32_t b = 0; b < header_->buckets; ++b) {
    uint64_t word = buckets_[b].word.load(memory_order_relaxed);
    if (word) buckets_[b].word.store(((word >> 32) + 1) << 32, memory_order_release);
  }
  header_->free_entry = 0;
  header_->objects = 0;
  for (uint32_t slot = used(); slot-- > 0;) {
    Entry& entry = entries_[slot];
    if (state_of(entry.word.load(memory_order_relaxed)) == State::free) {
      entry.next.store(header_->free_entry, memory_order_release);
      header_->free_entry = slot + 1;
    } else {
      uint8_t bytes[kIdSize];
      id_of(slot, bytes);
      link(slot, bucket_of(Id(bytes)));
      ++header_->objects;
    }
  }
}

void Table::set_pin(uint32_t slot, uint32_t client) const {
  row(slot)[client / 64].fetch_or(1ull << (client % 64), memory_order_seq_cst);
}

bool Table::clear_pin(uint32_t slot, uint32_t client) const {
  uint64_t bit = 1ull << (client % 64);
  return row(slot)[client / 64].fetch_and(~bit, memory_order_seq_cst) & bit;
}

bool Table::has_pin(uint32_t slot, uint32_t client) const {
  return row(slot)[client / 64].load(memory_order_relaxed) >> (client % 64) & 1;
}

bool Table::pinned(uint32_t slot) const {
  for (uint32_t w = 0; w < pin_words_; ++w)
    if (row(slot)[w].load(memory_order_seq_cst)) return true;
  return false;
}

}  // namespace miniray
