// What the raylet does with the segment beyond a client's part (see store.h): records, reaping,
// figures, warming and giving memory back, checking.

#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>

#include "futex.h"
#include "store.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23  // Linux 5.14
#endif

namespace miniray {
namespace {

constexpr uint32_t kReapStep = 4096;          // entries looked at under one hold of the mutex
constexpr uint64_t kWarmStep = 8ull << 20;    // prefault: bytes between two looks at the heap
constexpr uint64_t kPunchStep = 16ull << 20;  // punch: bytes under one hold of the mutex
constexpr uint64_t kPunchLeast = 1ull << 20;  // smaller free stretches are not worth the call

// Puts memory behind pages without changing what is in them (others may be writing there).
void touch(uint8_t* from, uint64_t bytes) {
  if (madvise(from, bytes, MADV_POPULATE_WRITE) != 0)
    for (uint64_t at = 0; at < bytes; at += kPage)
      reinterpret_cast<std::atomic<uint8_t>*>(from + at)->fetch_or(0, std::memory_order_relaxed);
  madvise(from, bytes, MADV_DONTNEED);  // the memory stays, but not in this process's page tables
}

}  // namespace

Status Client::reserve_client(uint32_t* slot, Wait wait) {
  if (Status status = lock(wait); status != Status::ok) return status;
  uint32_t count = segment_->header().max_clients;
  for (*slot = kRaylet + 1; *slot < count; ++*slot) {
    ClientRecord& record = segment_->client(*slot);
    if (record.state.load() != static_cast<uint32_t>(ClientState::free)) continue;
    record.epoch.fetch_add(1);
    record.pid.store(0);
    record.state.store(static_cast<uint32_t>(ClientState::reserved));
    break;
  }
  unlock();
  return *slot < count ? Status::ok : Status::no_slot;
}

Status Client::reap(uint32_t client, Reaped* reaped, ObjectInfo** aborted, Wait wait) {
  Header& header = segment_->header();
  ClientRecord& record = segment_->client(client);
  header.seal_waiters[client / 64].fetch_and(~(1ull << (client % 64)));
  for (uint32_t from = 0; from < table_.used(); from += kReapStep) {
    if (Status status = lock(wait); status != Status::ok) return status;
    uint32_t to = std::min(from + kReapStep, table_.used());
    Status status = reap_range(from, to, client, reaped, aborted);
    unlock();
    if (status != Status::ok) return status;
  }
  record.epoch.fetch_add(1);  // before the record is cleared: a late unpin must find it changed
  record.sleep.store(0);
  record.summary.store(0);
  for (auto& ready : record.ready)
    if (ready.load()) ready.store(0);
  record.pid.store(0);
  record.state.store(static_cast<uint32_t>(ClientState::free));
  return Status::ok;
}

Status Client::reap_range(uint32_t from, uint32_t to, uint32_t client, Reaped* reaped, ObjectInfo** aborted) {
  for (uint32_t slot = from; slot < to; ++slot) {
    Entry& entry = table_.entry(slot);
    if (table_.has_pin(slot, client)) reaped->pins += table_.clear_pin(slot, client);
    uint64_t word = entry.word.load();
    if (state_of(word) == State::unsealed && entry.creator.load() == client) {
      auto* more =
          static_cast<ObjectInfo*>(std::realloc(*aborted, (reaped->aborted + 1) * sizeof(ObjectInfo)));
      if (!more) return Status::full;
      *aborted = more;
      info(slot, &more[reaped->aborted++]);
      entry.word.store(with_state(word, State::deleting), std::memory_order_seq_cst);
    }
    if (state_of(entry.word.load()) == State::deleting && !table_.pinned(slot)) free_entry(slot);
  }
  return Status::ok;
}

Status Client::stats(StoreStats* stats, Wait wait) {
  if (Status status = lock(wait); status != Status::ok) return status;
  const Header& header = segment_->header();
  stats->capacity = header.capacity;
  stats->used = header.arena.used;
  stats->free = header.arena.bytes - header.arena.used;
  stats->objects = header.objects;
  stats->largest_free = arena_.largest_free();
  stats->cold = arena_.cold();
  stats->rebuilds = header.rebuilds.load() / 2;
  unlock();
  stats->clients = 0;
  for (uint32_t slot = 0; slot < header.max_clients; ++slot)
    stats->clients += segment_->client(slot).state.load() != static_cast<uint32_t>(ClientState::free);
  return Status::ok;
}

uint64_t Client::pinned_bytes() const {
  uint64_t sum = 0;
  for (uint32_t slot = 0; slot < table_.used(); ++slot) {
    const Entry& entry = table_.entry(slot);
    if (state_of(entry.word.load(std::memory_order_acquire)) != State::free && table_.pinned(slot))
      sum += entry.size.load(std::memory_order_relaxed);
  }
  return sum;
}

bool Client::info(uint32_t slot, ObjectInfo* info) const {
  const Entry& entry = table_.entry(slot);
  for (;;) {
    uint64_t word = entry.word.load(std::memory_order_acquire);
    if (state_of(word) == State::free) return false;
    table_.id_of(slot, info->id);
    info->size = entry.size.load(std::memory_order_acquire);
    info->creator = entry.creator.load(std::memory_order_acquire);
    info->primary = entry.primary.load(std::memory_order_acquire);
    info->touched = entry.touched.load(std::memory_order_acquire);
    info->state = state_of(word);
    if (entry.word.load(std::memory_order_acquire) == word) return true;
  }
}

uint64_t Client::prefault(uint64_t bytes) {
  uint64_t done = 0;
  while (done < bytes) {
    if (lock(Wait::yes) != Status::ok) break;
    uint64_t offset = 0, cold = arena_.cold_top(&offset);
    unlock();
    uint64_t step = std::min({cold, bytes - done, kWarmStep});
    if (step == 0) break;
    uint64_t start = offset / kPage * kPage;
    uint64_t end = std::min((offset + step + kPage - 1) / kPage * kPage, segment_->header().arena.bytes);
    touch(segment_->heap() + start, end - start);
    if (lock(Wait::yes) != Status::ok) break;
    arena_.warmed_top(end);
    unlock();
    done += end - offset;
  }
  return done;
}

uint64_t Client::punch(uint64_t keep) {
  const ArenaState& arena = segment_->header().arena;
  uint64_t done = 0;
  for (bool more = true; more;) {
    if (lock(Wait::yes) != Status::ok) break;
    uint64_t warm = arena.bytes - arena.used - arena_.cold();
    uint64_t offset = 0, block = 0, step = 0;
    if (warm >= keep + kPunchLeast)
      step = arena_.warm_end(kPunchLeast, std::min(warm - keep, kPunchStep) / kPage * kPage, &offset, &block);
    more = step != 0 &&
           fallocate(segment_->fd(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                     static_cast<off_t>(segment_->header().heap_at + offset), static_cast<off_t>(step)) == 0;
    if (more) {
      arena_.chilled(block, offset);
      done += step;
    }
    unlock();
  }
  return done;
}

Status Client::check(std::string* wrong, Wait wait) {
  if (Status status = lock(wait); status != Status::ok) return status;
  const Header& header = segment_->header();
  *wrong = arena_.check();
  uint64_t objects = 0, bytes = 0;
  for (uint32_t slot = 0; slot < table_.used() && wrong->empty(); ++slot) {
    const Entry& entry = table_.entry(slot);
    State state = state_of(entry.word.load());
    if (state == State::free) continue;
    ++objects;
    uint64_t size = entry.size.load(), offset = entry.offset.load();
    std::string name = "object in slot " + std::to_string(slot);
    if (size != 0) {
      bytes += block_bytes(size);
      const auto* block = reinterpret_cast<const Block*>(segment_->heap() + offset) - 1;
      if (offset % kLine || offset > header.arena.bytes)
        *wrong = name + ": bad offset";
      else if (block->is_free || block->size != block_bytes(size))
        *wrong = name + ": not its block";
    }
    uint8_t raw[kIdSize];
    table_.id_of(slot, raw);
    uint32_t found;
    uint64_t word;
    if (state != State::deleting && (table_.find(Id(raw), &found, &word) != Found::yes || found != slot))
      *wrong = name + ": not found by its id";
  }
  if (wrong->empty() && objects != header.objects) *wrong = "table: `objects` is not the count";
  if (wrong->empty() && bytes != header.arena.used) *wrong = "heap: a block belongs to no object";
  unlock();
  return Status::ok;
}

}  // namespace miniray
