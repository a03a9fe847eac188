// Making, mapping and unmapping the store segment (see store.h).

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <new>

#include "shm.h"
#include "store.h"

namespace miniray {
namespace {

constexpr uint64_t round_up(uint64_t n, uint64_t unit) { return (n + unit - 1) / unit * unit; }

// One entry per 4 KiB, between 64 Ki and 4 Mi: small objects fill a store's memory before its table.
uint32_t slots_for(uint64_t capacity) {
  return static_cast<uint32_t>(std::clamp<uint64_t>(capacity / 4096, 1u << 16, 1u << 22));
}

// Places each part on a page of its own; returns the size of the whole segment.
uint64_t lay_out(Header& header) {
  uint64_t at = round_up(sizeof(Header), kPage);
  auto place = [&at](uint64_t bytes) {
    uint64_t here = at;
    at = round_up(at + bytes, kPage);
    return here;
  };
  header.clients_at = place(uint64_t{header.max_clients} * sizeof(ClientRecord));
  header.buckets_at = place(uint64_t{header.buckets} * sizeof(Bucket));
  header.entries_at = place(uint64_t{header.slots} * sizeof(Entry));
  header.pins_at = place(uint64_t{header.slots} * (header.max_clients / 8));
  header.scratch_at = place(uint64_t{header.slots} * sizeof(uint32_t));
  // A page more than asked for, so that one object may have the whole capacity.
  header.heap_at = place(round_up(header.capacity, kPage) + kPage);
  return at;
}

int make_mutex(pthread_mutex_t* mutex) {
  pthread_mutexattr_t attr;
  int rc = pthread_mutexattr_init(&attr);
  if (rc) return rc;
  pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
  pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
  rc = pthread_mutex_init(mutex, &attr);
  pthread_mutexattr_destroy(&attr);
  return rc;
}

bool sane(const Header& header, uint64_t bytes) {
  Header expected{};
  expected.slots = header.slots;
  expected.buckets = header.buckets;
  expected.max_clients = header.max_clients;
  expected.capacity = header.capacity;
  return header.magic == kSegmentMagic && header.version == kVersion && header.slots > 0 &&
         std::has_single_bit(header.buckets) && header.max_clients % 64 == 0 && header.max_clients > 0 &&
         header.max_clients <= kMaxClients && header.capacity < bytes && lay_out(expected) == bytes &&
         expected.heap_at == header.heap_at;
}

}  // namespace

Segment* Segment::create(uint64_t capacity, uint32_t slots, uint32_t max_clients) {
  if (capacity == 0 || capacity > (1ull << 46) || slots > (1u << 30) || max_clients == 0 ||
      max_clients > kMaxClients) {
    errno = EINVAL;
    return nullptr;
  }
  Header plan{};
  plan.capacity = capacity;
  plan.slots = slots ? slots : slots_for(capacity);
  plan.buckets = std::bit_ceil(std::max(plan.slots / 2, 1024u));
  plan.max_clients = static_cast<uint32_t>(round_up(max_clients, 64));
  plan.segment_bytes = lay_out(plan);

  auto* segment = new (std::nothrow) Segment();
  if (!segment) return nullptr;
  segment->fd_ = memfd_sealed("miniray-store", plan.segment_bytes);
  if (segment->fd_ < 0 || !segment->map()) {
    segment->drop();
    return nullptr;
  }
  Header& header = segment->header();
  header.version = kVersion;
  header.slots = plan.slots;
  header.buckets = plan.buckets;
  header.max_clients = plan.max_clients;
  header.capacity = capacity;
  header.segment_bytes = plan.segment_bytes;
  lay_out(header);
  segment->heap_bytes_ = plan.segment_bytes - plan.heap_at;
  segment->view_ = static_cast<uint8_t*>(map_shared(segment->fd_, plan.heap_at, segment->heap_bytes_, false));
  if (int rc = segment->view_ ? make_mutex(&header.mutex) : errno) {
    segment->drop();
    errno = rc;
    return nullptr;
  }
  Arena(&header.arena, segment->heap()).create(segment->heap_bytes_);
  header.magic = kSegmentMagic;
  return segment;
}

Segment* Segment::attach(int fd) {
  auto* segment = new (std::nothrow) Segment();
  if (!segment) return nullptr;
  segment->fd_ = fcntl(fd, F_DUPFD_CLOEXEC, 3);
  if (segment->fd_ < 0 || !segment->map()) {
    segment->drop();
    return nullptr;
  }
  const Header& header = segment->header();
  if (!sane(header, segment->bytes_)) {
    segment->drop();
    errno = EINVAL;
    return nullptr;
  }
  segment->heap_bytes_ = segment->bytes_ - header.heap_at;
  segment->view_ =
      static_cast<uint8_t*>(map_shared(segment->fd_, header.heap_at, segment->heap_bytes_, false));
  if (segment->view_) return segment;
  segment->drop();
  return nullptr;
}

bool Segment::map() {
  int64_t bytes = sealed_size(fd_);
  if (bytes < 0) return false;
  if (bytes < static_cast<int64_t>(sizeof(Header))) {
    errno = EINVAL;
    return false;
  }
  bytes_ = static_cast<size_t>(bytes);
  base_ = static_cast<uint8_t*>(map_shared(fd_, 0, bytes_, true));
  return base_ != nullptr;
}

void Segment::drop() {
  if (references_.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  int error = errno;
  if (view_) munmap(view_, heap_bytes_);
  if (base_) munmap(base_, bytes_);
  if (fd_ >= 0) ::close(fd_);
  delete this;
  errno = error;
}

ClientRecord& Segment::client(uint32_t slot) const {
  return reinterpret_cast<ClientRecord*>(base_ + header().clients_at)[slot];
}

}  // namespace miniray
