#include "store.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <new>

#include "futex.h"
#include "shm.h"

#if !defined(__GLIBC_PREREQ)
#define __GLIBC_PREREQ(major, minor) 0
#endif

namespace miniray {
namespace {

constexpr int kLockSpins = 64;  // about a microsecond: most critical sections are shorter

int lock_within(pthread_mutex_t* mutex, int64_t timeout_ns) {
#if __GLIBC_PREREQ(2, 30)
  constexpr clockid_t clock = CLOCK_MONOTONIC;
#else
  constexpr clockid_t clock = CLOCK_REALTIME;  // a jump of the clock may shorten or stretch the wait
#endif
  timespec now;
  clock_gettime(clock, &now);
  int64_t until = now.tv_sec * 1'000'000'000ll + now.tv_nsec + timeout_ns;
  timespec at{until / 1'000'000'000, until % 1'000'000'000};
#if __GLIBC_PREREQ(2, 30)
  return pthread_mutex_clocklock(mutex, clock, &at);
#else
  return pthread_mutex_timedlock(mutex, &at);
#endif
}

}  // namespace

// ---- a client's record ----------------------------------------------------------------------

Client* Client::open(Segment* segment, uint32_t slot) {
  if (slot >= segment->header().max_clients) {
    errno = EINVAL;
    return nullptr;
  }
  ClientRecord& record = segment->client(slot);
  auto from = static_cast<uint32_t>(slot == kRaylet ? ClientState::free : ClientState::reserved);
  if (!record.state.compare_exchange_strong(from, static_cast<uint32_t>(ClientState::active))) {
    errno = EBUSY;
    return nullptr;
  }
  size_t bytes = size_t{segment->header().slots} * sizeof(uint32_t);
  void* views =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (views == MAP_FAILED) return nullptr;
  auto* client = new (std::nothrow) Client();
  if (!client) return nullptr;
  client->views_ = static_cast<uint32_t*>(views);
  client->segment_ = segment;
  client->table_ = Table(reinterpret_cast<uint8_t*>(&segment->header()));
  client->arena_ = Arena(&segment->header().arena, segment->heap());
  client->slot_ = slot;
  client->epoch_ = record.epoch.load();
  client->forks_ = fork_generation();
  record.pid.store(static_cast<uint32_t>(getpid()));
  return client;
}

void Client::drop() {
  if (references_.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  munmap(views_, size_t{segment_->header().slots} * sizeof(uint32_t));
  segment_->drop();
  delete this;
}

void Client::close() {
  if (fork_generation() != forks_ || !owns_record() || pinned_slots_ != 0) return;
  record().state.store(static_cast<uint32_t>(ClientState::closed));
}

// ---- the mutex --------------------------------------------------------------------------------

Status Client::lock(Wait wait) {
  Header& header = segment_->header();
  int rc = pthread_mutex_trylock(&header.mutex);
  for (int spin = 0; rc == EBUSY && spin < kLockSpins; ++spin) {
    cpu_relax();
    rc = pthread_mutex_trylock(&header.mutex);
  }
  if (rc == EBUSY) {
    if (wait == Wait::no) return Status::busy;
    if (lock_timeout_ns < 0) {
      rc = pthread_mutex_lock(&header.mutex);
    } else {
      rc = lock_within(&header.mutex, lock_timeout_ns);
    }
  }
  if (rc == ETIMEDOUT) return Status::stuck;
  if (rc == EOWNERDEAD) {
    if (!rebuild()) header.broken.store(1);
    pthread_mutex_consistent(&header.mutex);
  } else if (rc != 0) {
    return Status::broken;
  }
  if (header.broken.load(std::memory_order_relaxed)) {
    pthread_mutex_unlock(&header.mutex);
    return Status::broken;
  }
  header.holder.store(slot_ + 1, std::memory_order_relaxed);
  if (unreclaimed_.load(std::memory_order_relaxed) && unreclaimed_.exchange(false)) sweep();
  return Status::ok;
}

void Client::unlock() {
  segment_->header().holder.store(0, std::memory_order_relaxed);
  pthread_mutex_unlock(&segment_->header().mutex);
}

// The last holder died inside. Entries' words are the truth; all else is made anew. Dying in here
// is fine too: the next holder starts over. False: two objects overlap.
bool Client::rebuild() {
  Header& header = segment_->header();
  uint64_t rebuilds = header.rebuilds.load() | 1;
  header.rebuilds.store(rebuilds);
  uint32_t* order = segment_->scratch();
  uint32_t count = 0;
  for (uint32_t slot = 0; slot < table_.used(); ++slot) {
    Entry& entry = table_.entry(slot);
    uint64_t word = entry.word.load();
    if (state_of(word) == State::deleting && !table_.pinned(slot))
      entry.word.store(with_state(word + 0x100, State::free));
    else if (state_of(word) != State::free && entry.size.load() != 0)
      order[count++] = slot;
  }
  std::sort(order, order + count, [this](uint32_t a, uint32_t b) {
    return table_.entry(a).offset.load(std::memory_order_relaxed) <
           table_.entry(b).offset.load(std::memory_order_relaxed);
  });
  arena_.clear();
  for (uint32_t i = 0; i < count; ++i) {
    const Entry& entry = table_.entry(order[i]);
    if (!arena_.adopt(entry.offset.load() - sizeof(Block), block_bytes(entry.size.load()))) return false;
  }
  arena_.finish();
  table_.rebuild_index();
  header.rebuilds.store(rebuilds + 1);
  return true;
}

// ---- objects ----------------------------------------------------------------------------------

Status Client::find(const Id& id, uint32_t* slot, uint64_t* word, Wait wait) {
  for (;;) {
    Found found = table_.find(id, slot, word);
    if (found == Found::yes) return Status::ok;
    if (found == Found::no) return Status::absent;
    if (Status status = lock(wait); status != Status::ok) return status;
    unlock();  // whoever was rebuilding is done, or we did it
  }
}

Status Client::allocate(const Id& id, uint64_t size, bool primary, uint32_t* slot, uint8_t** data,
                        Wait wait) {
  if (!owns_record()) return Status::reaped;
  if (size > segment_->header().arena.bytes) return Status::full;
  if (Status status = lock(wait); status != Status::ok) return status;
  Status status = Status::ok;
  uint64_t block = 0, word;
  uint64_t before_data = size ? sizeof(Block) : 0;
  if (table_.find(id, slot, &word) == Found::yes) {
    status = Status::exists;
  } else if (size != 0 && (block = arena_.allocate(block_bytes(size))) == kNoBlock) {
    status = Status::full;
  } else {
    *slot = table_.insert(id, block + before_data, size, slot_, primary);
    if (*slot == kNoSlot) {
      if (size != 0) arena_.release(block);
      status = Status::no_slot;
    }
  }
  unlock();
  *data = segment_->heap() + block + before_data;
  return status;
}

Status Client::seal(uint32_t slot) {
  Entry& entry = table_.entry(slot);
  uint64_t word = entry.word.load(std::memory_order_relaxed);
  if (state_of(word) != State::unsealed || entry.creator.load() != slot_) return Status::refused;
  uint8_t bytes[kIdSize];
  table_.id_of(slot, bytes);
  // Publishes the data to readers (they load `word` with acquire), and is seq_cst against the
  // waiters' bits: either we see a waiter, or it sees the object sealed.
  if (!entry.word.compare_exchange_strong(word, with_state(word, State::sealed))) return Status::refused;
  Header& header = segment_->header();
  for (uint32_t w = 0; w < header.max_clients / 64; ++w)
    if (header.seal_waiters[w].load(std::memory_order_seq_cst)) {
      header.seal_word.fetch_add(1, std::memory_order_seq_cst);
      futex_wake(header.seal_word, seal_bit(Id(bytes)));
      break;
    }
  return Status::ok;
}

Status Client::abort(uint32_t slot, Wait wait) {
  if (Status status = lock(wait); status != Status::ok) return status;
  Entry& entry = table_.entry(slot);
  uint64_t word = entry.word.load();
  bool mine = state_of(word) == State::unsealed && entry.creator.load() == slot_;
  if (mine) {
    entry.word.store(with_state(word, State::deleting), std::memory_order_seq_cst);
    if (!table_.pinned(slot)) free_entry(slot);
  }
  unlock();
  return mine ? Status::ok : Status::refused;
}

Status Client::erase(const Id& id, Wait wait) {
  if (Status status = lock(wait); status != Status::ok) return status;
  uint32_t slot;
  uint64_t word;
  bool found = table_.find(id, &slot, &word) == Found::yes && state_of(word) == State::sealed;
  if (found) {
    table_.entry(slot).word.store(with_state(word, State::deleting), std::memory_order_seq_cst);
    if (!table_.pinned(slot)) free_entry(slot);
  }
  unlock();
  return found ? Status::ok : Status::absent;
}

// Mutex held, state deleting, no pins. The entry is given back first: a death in between leaves a
// free entry whose block belongs to nobody, which is what a rebuild takes for free.
void Client::free_entry(uint32_t slot) {
  const Entry& entry = table_.entry(slot);
  uint64_t offset = entry.offset.load(), size = entry.size.load();
  table_.remove(slot);
  if (size != 0) arena_.release(offset - sizeof(Block));
}

Status Client::get(const Id& id, uint32_t* slot, Wait wait) {
  if (!owns_record()) return Status::reaped;
  for (;;) {
    uint64_t word;
    Status status = find(id, slot, &word, wait);
    if (status != Status::ok) return status;
    if (state_of(word) != State::sealed) return Status::absent;
    if (views_[*slot]++ == 0) {
      ++pinned_slots_;
      table_.set_pin(*slot, slot_);
    }
    Entry& entry = table_.entry(*slot);
    if (entry.word.load(std::memory_order_seq_cst) == word) {
      uint64_t tick = segment_->header().clock.fetch_add(1, std::memory_order_relaxed);
      entry.touched.store(tick, std::memory_order_relaxed);
      return Status::ok;
    }
    if (unpin(*slot)) return Status::reclaim;
  }
}

Status Client::pin_own(uint32_t slot) {
  Entry& entry = table_.entry(slot);
  if (state_of(entry.word.load()) != State::unsealed || entry.creator.load() != slot_) return Status::refused;
  if (views_[slot]++ == 0) {
    ++pinned_slots_;
    table_.set_pin(slot, slot_);
  }
  return Status::ok;
}

bool Client::unpin(uint32_t slot) {
  if (--views_[slot] != 0) return false;
  --pinned_slots_;
  if (!owns_record()) return false;  // the raylet took us for dead and gave our pins back
  table_.clear_pin(slot, slot_);
  return state_of(table_.entry(slot).word.load(std::memory_order_seq_cst)) == State::deleting;
}

Status Client::reclaim(uint32_t slot, Wait wait) {
  Status status = lock(wait);
  if (status == Status::stuck) unreclaimed_.store(true);  // nobody else will come to free it
  if (status != Status::ok) return status;
  if (state_of(table_.entry(slot).word.load()) == State::deleting && !table_.pinned(slot)) free_entry(slot);
  unlock();
  return Status::ok;
}

// Mutex held. Frees what a reclaim() that got stuck has left.
void Client::sweep() {
  for (uint32_t slot = 0; slot < table_.used(); ++slot)
    if (state_of(table_.entry(slot).word.load()) == State::deleting && !table_.pinned(slot)) free_entry(slot);
}

int Client::wait_seal(uint32_t seen, uint32_t bits, int64_t deadline_ns) {
  return futex_wait(segment_->header().seal_word, seen, deadline_ns, bits);
}

void Client::waiting(bool on) {
  auto& word = segment_->header().seal_waiters[slot_ / 64];
  uint64_t bit = 1ull << (slot_ % 64);
  if (on && waiters_.fetch_add(1) == 0) word.fetch_or(bit, std::memory_order_seq_cst);
  if (!on && waiters_.fetch_sub(1) == 1) word.fetch_and(~bit, std::memory_order_seq_cst);
}

}  // namespace miniray
