// libFuzzer target: the heap's allocator under any order of calls, and rebuilt from any list of blocks.
//
// The heap's memory ends where the address sanitizer looks; after each step the allocator must agree
// with itself, and its blocks must not overlap those that are held.

#include <map>
#include <memory>
#include <vector>

#include "../test/support.h"
#include "input.h"

namespace miniray::fuzz {
namespace {

constexpr uint64_t kHeap = 1 << 16;

class World {
 public:
  World() : heap_(static_cast<uint8_t*>(std::aligned_alloc(kPage, kHeap))), arena_(&state_, heap_.get()) {
    std::memset(heap_.get(), 0xa5, kHeap);
    arena_.create(kHeap);
  }

  void step(Input& input) {
    switch (input.below(5)) {
      case 0:
      case 1: allocate(block_bytes(input.below(input.below(2) ? kHeap : 2048))); break;
      case 2: release(input); break;
      case 3: rebuild(input); break;
      default: touch(input);
    }
    std::string wrong = arena_.check();
    if (!wrong.empty()) std::fprintf(stderr, "check: %s\n", wrong.c_str());
    CHECK(wrong.empty());
  }

 private:
  struct Free {
    void operator()(uint8_t* bytes) const { std::free(bytes); }
  };

  void allocate(uint64_t size) {
    uint64_t largest = arena_.largest_free(), at = arena_.allocate(size);
    CHECK((at == kNoBlock) == (largest < size));
    if (at == kNoBlock) return;
    uint64_t given = reinterpret_cast<Block*>(heap_.get() + at)->size;
    CHECK(given >= size && at + given <= kHeap);
    auto above = held_.lower_bound(at);
    CHECK(above == held_.end() || at + given <= above->first);
    CHECK(above == held_.begin() || std::prev(above)->first + std::prev(above)->second <= at);
    held_[at] = given;
    std::memset(heap_.get() + at + sizeof(Block), 0x5a, given - sizeof(Block));
  }

  void release(Input& input) {
    if (held_.empty()) return;
    auto chosen = std::next(held_.begin(), static_cast<int64_t>(input.below(held_.size())));
    arena_.release(chosen->first);
    held_.erase(chosen);
  }

  // From what is held, or from numbers that a broken table could have: adopt() must refuse those.
  void rebuild(Input& input) {
    std::map<uint64_t, uint64_t> adopted;
    bool wild = input.below(2);
    arena_.clear();
    if (wild) {
      for (uint64_t count = input.below(8); count > 0; --count) {
        auto at = input.take<uint64_t>(), size = input.take<uint64_t>();
        if (input.below(2)) at %= kHeap, size = block_bytes(size % kHeap);
        if (arena_.adopt(at, size)) adopted[at] = size;
      }
    } else {
      for (auto [at, size] : held_) {
        CHECK(arena_.adopt(at, size));
        adopted[at] = size;
      }
    }
    arena_.finish();
    held_ = adopted;
  }

  void touch(Input& input) {
    uint64_t offset = 0, block = 0;
    if (uint64_t cold = arena_.cold_top(&offset)) {
      CHECK(offset + cold <= kHeap);
      arena_.warmed_top(offset + input.below(cold + 1));
    }
    uint64_t bytes = arena_.warm_end(input.below(kHeap), input.below(kHeap), &offset, &block);
    if (bytes == 0) return;
    CHECK(offset + bytes <= kHeap);
    arena_.chilled(block, offset);
  }

  std::unique_ptr<uint8_t[], Free> heap_;
  ArenaState state_{};
  Arena arena_;
  std::map<uint64_t, uint64_t> held_;
};

}  // namespace
}  // namespace miniray::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  miniray::fuzz::Input input(bytes, size);
  miniray::fuzz::World world;
  for (int steps = 0; !input.empty() && steps < 300; ++steps) world.step(input);
  return 0;
}
