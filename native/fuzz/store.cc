// libFuzzer target: the object store under any order of calls of two clients and the raylet.
//
// One client may vanish at any moment and be reaped. Every object that is read must have the bytes
// it was written with, and at the end everything can be given back.

#include <vector>

#include "../test/support.h"
#include "input.h"

namespace miniray::fuzz {
namespace {

using namespace miniray::test;

constexpr uint64_t kIds = 24;

struct Pin {
  uint32_t slot;
  uint64_t n;
};

// One client's life: its pins and its one unfinished object.
struct Life {
  Client* client = nullptr;
  std::vector<Pin> pins;
  uint32_t unsealed = kNoSlot;
  uint64_t unsealed_n = 0, unsealed_size = 0;
};

class World {
 public:
  World() {
    Segment* segment = Segment::create(1 << 16, 16, 64);
    CHECK(segment != nullptr);
    segment_ = segment;
    segment_->hold();
    raylet_ = Client::open(segment, kRaylet);
    CHECK(raylet_ != nullptr);
    for (Life& life : lives_) begin(life);
  }

  ~World() {
    for (Life& life : lives_) vanish(life);
    for (uint64_t n = 0; n < kIds; ++n) raylet_->erase(make_id(n), Wait::yes);
    check_store(*raylet_);
    CHECK(stats_of(*raylet_).objects == 0);
    raylet_->close();
    raylet_->drop();
    segment_->drop();
  }

  void step(Input& input) {
    Life& life = lives_[input.below(2)];
    uint64_t n = input.below(kIds);
    switch (input.below(9)) {
      case 0: put(*life.client, n, input.below(20'000)); break;
      case 1: start(life, n, input.below(20'000)); break;
      case 2: finish(life, input.below(2)); break;
      case 3: keep(life, n); break;
      case 4: let_go(life, input); break;
      case 5: life.client->erase(make_id(n), Wait::yes); break;
      case 6: raylet_->prefault(input.below(1 << 17)); break;
      case 7: raylet_->punch(input.below(1 << 16)); break;
      default:
        vanish(life);
        begin(life);
    }
    check_store(*raylet_);
  }

 private:
  void begin(Life& life) {
    uint32_t slot;
    CHECK(raylet_->reserve_client(&slot, Wait::yes) == Status::ok);
    segment_->hold();
    life = Life{};
    life.client = Client::open(segment_, slot);
    CHECK(life.client != nullptr);
  }

  // As kill -9 leaves it: the raylet gives everything back.
  void vanish(Life& life) {
    reap(*raylet_, life.client->slot());
    for (Pin pin : life.pins) life.client->unpin(pin.slot);  // late, of a record that is another's
    life.client->close();
    life.client->drop();
  }

  void start(Life& life, uint64_t n, uint64_t size) {
    if (life.unsealed != kNoSlot) return;
    uint8_t* data;
    if (life.client->allocate(make_id(n), size, true, &life.unsealed, &data, Wait::yes) != Status::ok) {
      life.unsealed = kNoSlot;
      return;
    }
    fill(data, n, size);
  }

  void finish(Life& life, bool seal) {
    if (life.unsealed == kNoSlot) return;
    CHECK((seal ? life.client->seal(life.unsealed) : life.client->abort(life.unsealed, Wait::yes)) == Status::ok);
    life.unsealed = kNoSlot;
  }

  void keep(Life& life, uint64_t n) {
    uint32_t slot = pin(*life.client, n);
    if (slot == kNoSlot) return;
    CHECK(pinned_intact(*life.client, slot, n));
    life.pins.push_back({slot, n});
  }

  void let_go(Life& life, Input& input) {
    if (life.pins.empty()) return;
    size_t i = input.below(life.pins.size());
    CHECK(pinned_intact(*life.client, life.pins[i].slot, life.pins[i].n));
    unpin(*life.client, life.pins[i].slot);
    life.pins.erase(life.pins.begin() + static_cast<int64_t>(i));
  }

  Segment* segment_;
  Client* raylet_;
  Life lives_[2];
};

}  // namespace
}  // namespace miniray::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  miniray::fuzz::Input input(bytes, size);
  miniray::fuzz::World world;
  for (int steps = 0; !input.empty() && steps < 200; ++steps) world.step(input);
  return 0;
}
