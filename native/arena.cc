#include "arena.h"

#include <algorithm>
#include <bit>

namespace miniray {
namespace {

constexpr int kNewest = 16;  // how many blocks of the own class are compared before looking further

struct Class {
  uint32_t row, col;
};

// Row 0 has the sizes of 0–15 units exactly; row r > 0 has 16 columns over [2^(r+3), 2^(r+4)) units.
Class class_of(uint64_t size) {
  uint64_t units = size / kLine;
  if (units < kClassCols) return {0, static_cast<uint32_t>(units)};
  uint32_t log = 63 - std::countl_zero(units);
  return {log - 3, static_cast<uint32_t>(units >> (log - 4)) - kClassCols};
}

}  // namespace

void Arena::create(uint64_t bytes) {
  state_->bytes = bytes;
  clear();
  finish();
  at(0)->cold = bytes;
}

void Arena::clear() {
  state_->used = 0;
  state_->rows = 0;
  state_->top = 0;
  for (uint32_t r = 0; r < kClassRows; ++r) {
    state_->cols[r] = 0;
    for (FreeList& list : state_->lists[r]) list = {kNoBlock, kNoBlock};
  }
  *at(0) = Block{};  // an empty block at the bottom marks "nothing adopted yet"
}

bool Arena::adopt(uint64_t block, uint64_t size) {
  uint64_t end = state_->top + at(state_->top)->size;  // of what is tiled so far
  if (block < end || size < sizeof(Block) || size % kLine || block % kLine) return false;
  if (block > state_->bytes || size > state_->bytes - block) return false;
  uint64_t below = end ? at(state_->top)->size : 0;
  if (block > end) {
    *at(end) = Block{.size = block - end, .prev_size = below};
    link(end);
    below = block - end;
  }
  *at(block) = Block{.size = size, .prev_size = below};
  state_->top = block;
  state_->used += size;
  return true;
}

void Arena::finish() {
  uint64_t end = state_->top + at(state_->top)->size;
  if (end == state_->bytes) return;
  *at(end) = Block{.size = state_->bytes - end, .prev_size = end ? at(state_->top)->size : 0};
  state_->top = end;
  link(end);
}

void Arena::link(uint64_t offset, bool newest) {
  Block* block = at(offset);
  auto [row, col] = class_of(block->size);
  FreeList& list = state_->lists[row][col];
  block->is_free = 1;
  block->prev_free = newest ? kNoBlock : list.last;
  block->next_free = newest ? list.first : kNoBlock;
  (block->prev_free == kNoBlock ? list.first : at(block->prev_free)->next_free) = offset;
  (block->next_free == kNoBlock ? list.last : at(block->next_free)->prev_free) = offset;
  state_->rows |= 1ull << row;
  state_->cols[row] |= static_cast<uint16_t>(1u << col);
}

void Arena::unlink(uint64_t offset) {
  Block* block = at(offset);
  auto [row, col] = class_of(block->size);
  FreeList& list = state_->lists[row][col];
  (block->prev_free == kNoBlock ? list.first : at(block->prev_free)->next_free) = block->next_free;
  (block->next_free == kNoBlock ? list.last : at(block->next_free)->prev_free) = block->prev_free;
  block->is_free = 0;
  if (list.first != kNoBlock) return;
  state_->cols[row] &= static_cast<uint16_t>(~(1u << col));
  if (state_->cols[row] == 0) state_->rows &= ~(1ull << row);
}

void Arena::place(uint64_t offset, uint64_t size) {
  at(offset)->size = size;
  if (offset + size == state_->bytes)
    state_->top = offset;
  else
    at(offset + size)->prev_size = size;
}

uint64_t Arena::search(uint64_t size) const {
  auto [row, col] = class_of(size);
  uint64_t best = kNoBlock, rest = state_->lists[row][col].first;
  for (int n = 0; n < kNewest && rest != kNoBlock; ++n, rest = at(rest)->next_free) {
    uint64_t have = at(rest)->size;
    if (have >= size && (best == kNoBlock || have < at(best)->size)) best = rest;
  }
  if (best != kNoBlock) return best;
  uint32_t cols = state_->cols[row] & static_cast<uint32_t>(~0ull << (col + 1));
  if (cols) return state_->lists[row][std::countr_zero(cols)].first;
  if (uint64_t rows = state_->rows & (~0ull << (row + 1))) {
    row = static_cast<uint32_t>(std::countr_zero(rows));
    return state_->lists[row][std::countr_zero(state_->cols[row])].first;
  }
  while (rest != kNoBlock && at(rest)->size < size) rest = at(rest)->next_free;
  return rest;
}

uint64_t Arena::allocate(uint64_t size) {
  if (size > state_->bytes) return kNoBlock;
  uint64_t found = search(size);
  if (found == kNoBlock) return kNoBlock;
  Block* block = at(found);
  unlink(found);
  if (uint64_t rest = block->size - size) {
    uint64_t above = found + size;
    *at(above) = Block{.prev_size = size, .cold = std::min(block->cold, rest)};
    place(above, rest);
    link(above);
    block->size = size;
  }
  state_->used += size;
  return found;
}

void Arena::release(uint64_t offset) {
  Block* block = at(offset);
  uint64_t size = block->size;
  state_->used -= size;
  block->cold = 0;
  if (uint64_t above = offset + size; above < state_->bytes && at(above)->is_free) {
    unlink(above);
    size += at(above)->size;
    block->cold = at(above)->cold;
  }
  if (offset != 0 && at(offset - block->prev_size)->is_free) {
    uint64_t below = offset - block->prev_size;
    unlink(below);
    size += at(below)->size;
    at(below)->cold = block->cold;  // its own cold end is now in the middle: forgotten
    offset = below;
  }
  place(offset, size);
  link(offset);
}

uint64_t Arena::largest_free() const {
  if (state_->rows == 0) return 0;
  uint32_t row = 63 - std::countl_zero(state_->rows);
  uint32_t col = 31 - std::countl_zero(static_cast<uint32_t>(state_->cols[row]));
  uint64_t largest = 0;
  for (uint64_t b = state_->lists[row][col].first; b != kNoBlock; b = at(b)->next_free)
    largest = std::max(largest, at(b)->size);
  return largest;
}

uint64_t Arena::cold() const {
  uint64_t sum = 0;
  for (const auto& row : state_->lists)
    for (const FreeList& list : row)
      for (uint64_t b = list.first; b != kNoBlock; b = at(b)->next_free) sum += at(b)->cold;
  return sum;
}

uint64_t Arena::cold_top(uint64_t* offset) const {
  const Block* top = at(state_->top);
  if (!top->is_free || top->cold == 0) return 0;
  *offset = state_->bytes - top->cold;
  return top->cold;
}

void Arena::warmed_top(uint64_t up_to) {
  Block* top = at(state_->top);
  if (top->is_free && up_to > state_->bytes - top->cold) top->cold = state_->bytes - up_to;
}

uint64_t Arena::warm_end(uint64_t least, uint64_t most, uint64_t* offset, uint64_t* block) const {
  for (uint32_t r = kClassRows; r-- > 0;)
    for (uint32_t c = kClassCols; c-- > 0;)
      for (uint64_t b = state_->lists[r][c].last; b != kNoBlock; b = at(b)->prev_free) {
        if (at(b)->size < least) continue;
        uint64_t from = (b + sizeof(Block) + kPage - 1) / kPage * kPage;
        uint64_t to = (b + at(b)->size - at(b)->cold) / kPage * kPage;
        if (to <= from || to - from < least) continue;
        *block = b;
        *offset = to - from > most ? to - most : from;
        return to - *offset;
      }
  return 0;
}

void Arena::chilled(uint64_t offset, uint64_t from) {
  unlink(offset);
  at(offset)->cold = offset + at(offset)->size - from;
  link(offset, false);  // warm blocks of the class go first
}

std::string Arena::check() const {
  auto wrong = [](uint64_t at, const char* what) {
    return "heap block at " + std::to_string(at) + ": " + what;
  };
  uint64_t used = 0, free_blocks = 0, last = 0, before = 0;
  bool before_free = false;
  for (uint64_t b = 0; b < state_->bytes; before = at(b)->size, last = b, b += before) {
    const Block* block = at(b);
    if (block->size < sizeof(Block) || block->size % kLine) return wrong(b, "bad size");
    if (block->size > state_->bytes - b) return wrong(b, "reaches beyond the heap");
    if (block->prev_size != before) return wrong(b, "prev_size is not the size below");
    if (block->is_free && before_free) return wrong(b, "free beside a free block");
    if (block->is_free && block->cold > block->size) return wrong(b, "colder than large");
    before_free = block->is_free;
    (before_free ? free_blocks : used) += before_free ? 1 : block->size;
  }
  if (last != state_->top) return wrong(last, "is the highest, but `top` is another");
  if (used != state_->used) return "heap: `used` is not the sum of the blocks";
  for (uint32_t r = 0; r < kClassRows; ++r) {
    if (((state_->rows >> r) & 1) != (state_->cols[r] != 0)) return "heap: a row bit is wrong";
    for (uint32_t c = 0; c < kClassCols; ++c) {
      const FreeList& list = state_->lists[r][c];
      if (((state_->cols[r] >> c) & 1) != (list.first != kNoBlock)) return "heap: a column bit is wrong";
      uint64_t newer = kNoBlock;
      for (uint64_t b = list.first; b != kNoBlock; newer = b, b = at(b)->next_free) {
        Class own = class_of(at(b)->size);
        if (!at(b)->is_free || own.row != r || own.col != c) return wrong(b, "in the wrong list");
        if (at(b)->prev_free != newer) return wrong(b, "its list is torn");
        if (free_blocks-- == 0) return wrong(b, "listed twice");
      }
      if (list.last != newer) return "heap: a list's end is wrong";
    }
  }
  return free_blocks ? "heap: a free block is in no list" : "";
}

}  // namespace miniray
