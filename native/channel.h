// One channel between two processes of a node: a memfd with a ring each way, and who the sides are.
// The creator makes it and passes the memfd on; the peer attaches, once. Either side may go on
// reading what was published after the other has closed or died.
//
// Limits: a frame has at most capacity / 2 bytes, so that a half-empty ring can always take it;
// longer messages are sent as fragments. A ring whose numbers make no sense (a peer gone wrong)
// closes this channel and nothing else.
//
// Threads: one sender and one receiver at a time per side, and close() alone (the GIL sees to it).
#pragma once

#include "doorbell.h"
#include "layout.h"
#include "ring.h"
#include "store.h"

namespace miniray {

constexpr uint32_t kMinCapacity = 1024, kMaxCapacity = 1u << 30;

enum class Sent { ok, no_room, too_long, closed };

class Channel {
 public:
  // Both return 0 or an errno. The memfd of create() is the caller's; attach() keeps none.
  // `capacity` is rounded up to a power of two. `number` is this side's index in its ready bitmap.
  int create(Client* client, uint32_t number, uint32_t capacity, int* fd);
  int attach(Client* client, uint32_t number, int fd);
  // attach() for memory that is mapped already and stays the caller's: both sides in one process.
  // `capacity` is the header's, which the creator could change after it was looked at.
  int join(Client* client, uint32_t number, ChannelHeader* header, uint32_t capacity);
  void close();  // tells the peer; unmaps what it mapped

  bool is_open() const { return header_ != nullptr; }
  ChannelHeader* header() const { return header_; }
  uint32_t number() const { return number_; }
  uint32_t capacity() const { return capacity_; }
  bool peer_attached() const { return peer().attached.load(std::memory_order_acquire); }
  bool peer_closed() const { return peer().closed.load(std::memory_order_acquire); }

  Sent send(const void* data, size_t length, bool more);  // call tell() after the last one
  void publish() { producer_.publish(); }  // the peer finds it when it looks; tell() makes it look
  void tell() {  // the peer has news: its ready bit and doorbell. Before it attaches: it will look
    producer_.publish();
    ring_peer();
  }

  // Incoming frames; after the last one wanted, finish().
  Consumer& incoming() { return consumer_; }
  void finish() {
    if (consumer_.release()) ring_peer();
  }

  // True once after a refused send, when there is room again.
  bool take_room() {
    if (!refused_ || producer_.still_waiting()) return false;
    refused_ = false;
    return true;
  }

 private:
  ChannelSide& self() const { return header_->side[side_]; }
  ChannelSide& peer() const { return header_->side[1 - side_]; }
  bool open_side(Client* client, uint32_t number, uint32_t side);
  void ring_peer();

  ChannelHeader* header_ = nullptr;
  size_t mapped_bytes_ = 0;
  Client* client_ = nullptr;  // a counted reference: the peer's doorbell lies in its segment
  uint32_t number_ = 0, side_ = 0, capacity_ = 0, knocked_epoch_ = kNeverKnocked;
  bool refused_ = false;
  Producer producer_;
  Consumer consumer_;
};

}  // namespace miniray
