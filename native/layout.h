// Every structure that lives in shared memory: the store segment and a channel's memory.
//
//   store segment (one sealed memfd per node)
//   ┌────────┬─────────┬─────────┬─────────┬──────┬─────────┬──────────────────────────────┐
//   │ Header │ clients │ buckets │ entries │ pins │ scratch │ heap: Block data Block data… │
//   └────────┴─────────┴─────────┴─────────┴──────┴─────────┴──────────────────────────────┘
//   channel memory (one sealed memfd per channel)
//   ┌───────────────┬────────────────────────┬────────────────────────┐
//   │ ChannelHeader │ bytes: creator → peer  │ bytes: peer → creator  │
//   └───────────────┴────────────────────────┴────────────────────────┘
//
// Contract: nothing here holds a pointer, only offsets and indices, so every process may map it
// anywhere. A memfd starts as zeros and untouched pages cost nothing: all-zero must mean "empty"
// in the clients, buckets, entries and pins, because nobody initialises them.
// Changing any structure means raising kVersion: the asserted sizes and offsets are the format.
#pragma once

#include <pthread.h>

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace miniray {

constexpr uint64_t kSegmentMagic = 0x4d52'5354'4f52'4531ull;  // "MRSTORE1"
constexpr uint64_t kChannelMagic = 0x4d52'4348'414e'4e31ull;  // "MRCHANN1"
constexpr uint32_t kVersion = 1;

constexpr uint32_t kIdSize = 28;  // an ObjectID, see core/ids.py
constexpr uint32_t kLine = 64;    // cache line; also the heap's unit and alignment
constexpr uint32_t kPage = 4096;
constexpr uint32_t kMaxClients = 4096;   // bounds the fixed bitmaps; a segment may allow fewer
constexpr uint32_t kMaxChannels = 4096;  // per mailbox
constexpr uint32_t kRaylet = 0;          // client slot of the process that made the segment

static_assert(std::atomic<uint64_t>::is_always_lock_free);
static_assert(std::atomic<uint32_t>::is_always_lock_free);

// ---- heap ---------------------------------------------------------------------------------

// Precedes every allocated or free stretch of the heap. Blocks tile the heap without gaps.
struct alignas(kLine) Block {
  uint64_t size;       // bytes, header included, a multiple of kLine
  uint64_t prev_size;  // of the block below, 0 for the first
  uint64_t next_free;  // offsets in the heap; kNoBlock at the ends. Free blocks only
  uint64_t prev_free;
  uint64_t cold;  // free blocks: bytes at the end that have no memory behind them yet (a hint)
  uint32_t is_free;
  uint32_t unused;
};
static_assert(sizeof(Block) == kLine);

constexpr uint64_t kNoBlock = ~0ull;
constexpr uint32_t kClassRows = 40;  // powers of two of the unit
constexpr uint32_t kClassCols = 16;  // linear steps inside one power of two

struct FreeList {
  uint64_t first;  // most recently freed: the warmest
  uint64_t last;
};

// Guarded by Header::mutex, as is every Block.
struct ArenaState {
  uint64_t bytes;  // size of the heap
  uint64_t used;   // bytes in allocated blocks, headers included
  uint64_t top;    // offset of the highest block
  uint64_t rows;   // bit r: some column of row r is not empty
  uint16_t cols[kClassRows];
  FreeList lists[kClassRows][kClassCols];
};
static_assert(sizeof(ArenaState) == 32 + 80 + 16 * kClassRows * kClassCols);

// ---- object table -------------------------------------------------------------------------

enum class State : uint8_t { free = 0, unsealed = 1, sealed = 2, deleting = 3 };

// One object. `word` is generation << 8 | State: it decides alone what the entry is, so a death
// between any two stores leaves either the old or the new state. The generation grows when the
// entry is given back; a reader that sees the same word twice has seen one object in between.
// The other fields are written only while the word says `free`, hence by the mutex's holder.
struct alignas(kLine) Entry {
  std::atomic<uint64_t> word;
  std::atomic<uint64_t> id[3];
  std::atomic<uint32_t> id_tail;
  std::atomic<uint32_t> next;     // slot + 1 of the next entry in the bucket (or free list), 0 = end
  std::atomic<uint64_t> offset;   // of the data in the heap; the block's header lies before it
  std::atomic<uint64_t> size;     // of the data; 0 = no block at all
  std::atomic<uint32_t> creator;  // client slot
  std::atomic<uint32_t> primary;  // 1: spill before dropping; 0: another copy exists
  // A line of its own: written by every reader, while the line above is only read.
  alignas(kLine) std::atomic<uint64_t> touched;  // Header::clock at the last put or get
};
static_assert(sizeof(Entry) == 2 * kLine);
static_assert(offsetof(Entry, touched) == kLine);

// Low half: slot + 1 of the first entry, 0 = empty. High half: how many removals there were; a
// reader that found nothing looks again if it changed, as it may have followed a reused entry.
struct Bucket {
  std::atomic<uint64_t> word;
};
static_assert(sizeof(Bucket) == 8);

// ---- clients ------------------------------------------------------------------------------

enum class ClientState : uint32_t { free = 0, reserved = 1, active = 2, closed = 3 };

// One process. `ready` and `summary` are set by producers and cleared by this client; `sleep` is
// written by this client, and marked by producers (see doorbell.h).
struct alignas(kLine) ClientRecord {
  std::atomic<uint32_t> state;
  std::atomic<uint32_t> epoch;  // grows when the record changes hands: late unpins are ignored
  std::atomic<uint32_t> pid;
  alignas(kLine) std::atomic<uint32_t> sleep;
  std::atomic<uint64_t> summary;  // bit w: ready[w] is worth a look
  alignas(kLine) std::atomic<uint64_t> ready[kMaxChannels / 64];
};
static_assert(sizeof(ClientRecord) == 2 * kLine + kMaxChannels / 8);

// ---- segment ------------------------------------------------------------------------------

struct Header {
  uint64_t magic;
  uint32_t version;
  uint32_t slots;        // entries
  uint32_t buckets;      // a power of two
  uint32_t max_clients;  // a multiple of 64
  uint64_t capacity;     // what was asked for; the heap is a little larger
  uint64_t segment_bytes;
  uint64_t clients_at, buckets_at, entries_at, pins_at, scratch_at, heap_at;

  alignas(kLine) pthread_mutex_t mutex;  // robust, process-shared: heap, inserts and removals
  std::atomic<uint32_t> holder;          // client slot + 1 of who has it, for messages
  std::atomic<uint32_t> broken;          // a rebuild found overlapping objects: nobody goes on
  std::atomic<uint64_t> rebuilds;        // odd while a rebuild runs (readers must not trust a miss)

  alignas(kLine) uint32_t free_entry;  // slot + 1 of the first unused entry below `entries_used`
  std::atomic<uint32_t> entries_used;  // entries from here on were never used
  uint64_t objects;

  alignas(kLine) std::atomic<uint64_t> clock;  // ticks at each put and get: the LRU order

  alignas(kLine) std::atomic<uint32_t> seal_word;        // futex: bumped by each seal
  std::atomic<uint64_t> seal_waiters[kMaxClients / 64];  // bit c: client c waits for a seal

  alignas(kLine) ArenaState arena;
};
static_assert(offsetof(Header, mutex) == 2 * kLine);
static_assert(sizeof(pthread_mutex_t) <= 48);

// ---- channels -----------------------------------------------------------------------------

// One direction. Offsets only grow; a position in the bytes is offset & (capacity - 1).
struct RingState {
  alignas(kLine) std::atomic<uint64_t> tail;    // written by the producer
  alignas(kLine) std::atomic<uint64_t> head;    // written by the consumer
  alignas(kLine) std::atomic<uint32_t> wanted;  // bytes a refused producer waits for, 0 = none
};
static_assert(sizeof(RingState) == 3 * kLine);

// Before each frame in a ring, 8-aligned. Payloads are padded to 8 and may wrap, this never does.
struct FrameHeader {
  uint32_t length;
  uint32_t more;  // 1: the next frame goes on where this one ends
};
static_assert(sizeof(FrameHeader) == 8);

struct ChannelSide {
  std::atomic<uint32_t> attached;
  std::atomic<uint32_t> closed;
  uint32_t client;   // slot in the store segment; valid once attached
  uint32_t channel;  // index in that client's ready bitmap
};

struct alignas(kPage) ChannelHeader {
  uint64_t magic;
  uint32_t version;
  uint32_t capacity;    // bytes of one ring, a power of two
  ChannelSide side[2];  // 0 = creator
  RingState ring[2];    // ring[i] is written by side i
};
static_assert(sizeof(ChannelHeader) == kPage);
static_assert(offsetof(ChannelHeader, ring) == kLine);

}  // namespace miniray
