#include "channel.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>

#include "shm.h"

namespace miniray {

int Channel::create(Client* client, uint32_t number, uint32_t capacity, int* fd) {
  if (capacity > kMaxCapacity) return EINVAL;
  capacity = std::bit_ceil(std::max(capacity, kMinCapacity));
  size_t bytes = sizeof(ChannelHeader) + 2 * size_t{capacity};
  *fd = memfd_sealed("miniray-channel", bytes);
  void* at = *fd >= 0 ? map_shared(*fd, 0, bytes, true) : nullptr;
  if (!at) {
    int error = errno;
    if (*fd >= 0) ::close(*fd);
    return error;
  }
  header_ = static_cast<ChannelHeader*>(at);
  mapped_bytes_ = bytes;
  header_->version = kVersion;
  header_->capacity = capacity;
  header_->magic = kChannelMagic;
  capacity_ = capacity;
  return open_side(client, number, 0) ? 0 : EINVAL;
}

int Channel::attach(Client* client, uint32_t number, int fd) {
  int64_t bytes = sealed_size(fd);
  if (bytes < 0) return errno;
  if (bytes < static_cast<int64_t>(sizeof(ChannelHeader))) return EINVAL;
  void* at = map_shared(fd, 0, static_cast<size_t>(bytes), true);
  if (!at) return errno;
  auto* header = static_cast<ChannelHeader*>(at);
  uint32_t capacity = std::atomic_ref(header->capacity).load(std::memory_order_relaxed);
  bool sane = header->magic == kChannelMagic && header->version == kVersion &&
              std::has_single_bit(capacity) && capacity >= kMinCapacity &&
              header->side[0].channel < kMaxChannels &&
              header->side[0].client < client->segment().header().max_clients &&
              sizeof(ChannelHeader) + 2 * uint64_t{capacity} == static_cast<uint64_t>(bytes);
  if (int error = sane ? join(client, number, header, capacity) : EINVAL) {
    munmap(at, static_cast<size_t>(bytes));
    return error;
  }
  mapped_bytes_ = static_cast<size_t>(bytes);
  return 0;
}

int Channel::join(Client* client, uint32_t number, ChannelHeader* header, uint32_t capacity) {
  if (header->side[1].attached.load()) return EBUSY;
  header_ = header;
  capacity_ = capacity;
  if (!open_side(client, number, 1)) return EINVAL;
  uint32_t never = kNeverKnocked;
  ring(client->record(), number, &never);  // for what the creator sent before it could see us
  return 0;
}

bool Channel::open_side(Client* client, uint32_t number, uint32_t side) {
  uint8_t* bytes = reinterpret_cast<uint8_t*>(header_ + 1);
  if (!producer_.open(&header_->ring[side], bytes + size_t{side} * capacity_, capacity_) ||
      !consumer_.open(&header_->ring[1 - side], bytes + size_t{1 - side} * capacity_, capacity_)) {
    header_ = nullptr;
    return false;
  }
  client_ = client;
  client_->hold();
  number_ = number;
  side_ = side;
  self().client = client->slot();
  self().channel = number;
  self().attached.store(1, std::memory_order_seq_cst);  // partner: ring_peer
  return true;
}

void Channel::close() {
  if (!header_) return;
  self().closed.store(1, std::memory_order_seq_cst);
  ring_peer();
  if (mapped_bytes_) munmap(header_, mapped_bytes_);
  header_ = nullptr;
  client_->drop();
}

Sent Channel::send(const void* data, size_t length, bool more) {
  if (length > capacity_ / 2) return Sent::too_long;
  if (peer_closed()) return Sent::closed;
  if (producer_.write(data, static_cast<uint32_t>(length), more)) return Sent::ok;
  // Only reached when the ring is full: what was written so far must be read before room comes.
  tell();
  if (!producer_.want_room(static_cast<uint32_t>(length)) &&
      producer_.write(data, static_cast<uint32_t>(length), more))
    return Sent::ok;
  refused_ = true;
  return Sent::no_room;
}

void Channel::ring_peer() {
  // seq_cst: join() sets this, then looks at the ring. Either it sees our frame or we see it.
  if (!peer().attached.load(std::memory_order_seq_cst)) return;
  uint32_t client = peer().client, channel = peer().channel;
  if (client < client_->segment().header().max_clients && channel < kMaxChannels)
    ring(client_->segment().client(client), channel, &knocked_epoch_);
}

}  // namespace miniray
