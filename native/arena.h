// The heap's allocator: blocks with a header in front, free ones in segregated lists.
//
//   row r, column c  ─▶ newest ⇄ … ⇄ oldest      blocks of (16+c)·2^(r-1) … units of 64 bytes
//
// Allocation takes the best of the newest few blocks of its own class, else the newest of the next
// class that has any, and carves from the low end: freed (warm) memory is used again before memory
// that was never touched, whose first touch costs far more than the copy. Freeing merges with both
// neighbours at once. All steps take constant time, but for a last search of one list before
// saying "full": an allocation fails only if no free block is large enough.
//
// Contract: the caller holds the segment's mutex. Offsets are of blocks in the heap, sizes are of
// blocks; `block_bytes` turns a payload into a block size. Nothing here survives a death of the
// holder: the store rebuilds it from the object table with clear() and adopt().
#pragma once

#include <string>

#include "layout.h"

namespace miniray {

// The block size that holds `bytes` of payload.
constexpr uint64_t block_bytes(uint64_t bytes) { return sizeof(Block) + (bytes + kLine - 1) / kLine * kLine; }

class Arena {
 public:
  Arena(ArenaState* state, uint8_t* heap) : state_(state), heap_(heap) {}

  void create(uint64_t bytes);  // one free, cold block

  uint64_t allocate(uint64_t size);  // block offset, kNoBlock when nothing fits
  void release(uint64_t block);

  // Rebuilding: clear(), then adopt() every allocated block in ascending order, then finish().
  // adopt() says false if the block does not lie beyond the last one and inside the heap.
  void clear();
  bool adopt(uint64_t block, uint64_t size);
  void finish();

  uint64_t largest_free() const;  // block size
  uint64_t cold() const;          // bytes of free blocks without memory behind them

  // Where touching ahead should go on: the cold end of the highest block (offset; 0 bytes if none).
  uint64_t cold_top(uint64_t* offset) const;
  void warmed_top(uint64_t up_to);  // the heap below `up_to` has been touched

  // The end of the warm, page-aligned part of some free block of at least `least` bytes, at most
  // `most` long; 0 when there is none. `block` receives it, for chilled().
  uint64_t warm_end(uint64_t least, uint64_t most, uint64_t* offset, uint64_t* block) const;
  void chilled(uint64_t block, uint64_t from);  // memory from `from` to the block's end is gone

  std::string check() const;  // "" or what is wrong

 private:
  Block* at(uint64_t offset) const { return reinterpret_cast<Block*>(heap_ + offset); }
  void link(uint64_t block, bool newest = true);
  void unlink(uint64_t block);
  void place(uint64_t block, uint64_t size);  // size changed: tell the block above, or `top`
  uint64_t search(uint64_t size) const;

  ArenaState* state_;
  uint8_t* heap_;
};

}  // namespace miniray
