// Several clients as threads over one mapping, so that ThreadSanitizer sees every race that two
// processes could have. Usage: native_stress [seconds] [seed]
//
// Store: threads put, get, hold, delete and abort a few shared ids, and verify each byte they read;
// some vanish like a killed process and are reaped. All ids share two buckets, and a few objects that
// stay must be found at any time. At the end everything must be given back.
// Channel: two threads exchange framed, checksummed streams with sleeps and full rings.

#include <atomic>
#include <thread>
#include <vector>

#include "../futex.h"
#include "support.h"

namespace miniray::test {
namespace {

constexpr uint64_t kIds = 24;
constexpr uint64_t kStaying = 4;
constexpr uint32_t kSlots = 256, kBuckets = 1024;  // what Segment::create makes of kSlots
constexpr int kThreads = 4;
constexpr size_t kHeld = 6;

// The i-th number whose id falls into one of two buckets; the first kStaying are never erased.
uint64_t number(uint64_t i) {
  static const std::vector<uint64_t> numbers = [] {
    std::vector<uint64_t> found;
    for (uint64_t n = 0; found.size() < kStaying + kIds + 64; ++n)
      if (make_id(n).hash() % kBuckets < 2) found.push_back(n);
    return found;
  }();
  return numbers[i];
}

struct View {
  uint32_t slot;
  uint64_t n;
};

void drop(Client& client, std::vector<View>& views, size_t i) {
  CHECK(pinned_intact(client, views[i].slot, views[i].n));
  unpin(client, views[i].slot);
  views[i] = views.back();
  views.pop_back();
}

void make(Client& client, Random& random, uint64_t n) {
  uint64_t size = random.below(8) == 0 ? 0 : random.below(30000);
  if (random.below(8) != 0) {
    put(client, n, size);
    return;
  }
  uint32_t slot;
  uint8_t* data;
  if (client.allocate(make_id(n), size, true, &slot, &data, Wait::yes) != Status::ok) return;
  fill(data, n, size / 2);
  CHECK(client.abort(slot, Wait::yes) == Status::ok);
}

// One life of a client: works, then leaves tidily or vanishes holding views and an unsealed object.
void client_life(Client& client, Random& random, int64_t end_ns) {
  std::vector<View> views;
  for (int step = 0; step < 3000 && monotonic_ns() < end_ns; ++step) {
    uint64_t n = number(kStaying + random.below(kIds)), what = random.below(12);
    if (what < 3) {
      make(client, random, n);
    } else if (what < 7) {
      uint32_t slot = views.size() < kHeld ? pin(client, n) : kNoSlot;
      if (slot != kNoSlot) views.push_back({slot, n});
    } else if (what < 8) {
      client.erase(make_id(n), Wait::yes);
    } else if (what < 10) {
      uint64_t staying = number(random.below(kStaying));
      uint32_t slot = pin(client, staying);
      CHECK(slot != kNoSlot && pinned_intact(client, slot, staying));
      unpin(client, slot);
    } else if (!views.empty()) {
      drop(client, views, random.below(views.size()));
    }
  }
  if (random.below(2) == 0) {
    while (!views.empty()) drop(client, views, 0);
  } else {
    uint32_t slot;
    uint8_t* data;
    client.allocate(make_id(number(kStaying + kIds + client.slot())), 100, true, &slot, &data, Wait::yes);
  }
}

void worker(Segment* segment, Client* raylet, uint64_t seed, int64_t end_ns) {
  Random random(seed);
  while (monotonic_ns() < end_ns) {
    uint32_t slot;
    CHECK(raylet->reserve_client(&slot, Wait::yes) == Status::ok);
    segment->hold();
    Client* client = Client::open(segment, slot);
    CHECK(client);
    client_life(*client, random, end_ns);
    reap(*raylet, slot);
    client->drop();
  }
}

void stress_store(uint64_t seed, int64_t run_ns) {
  Segment* segment = Segment::create(256 << 10, kSlots, 64);
  CHECK(segment);
  Client* raylet = Client::open(segment, kRaylet);
  CHECK(raylet);
  for (uint64_t i = 0; i < kStaying; ++i) CHECK(put(*raylet, number(i), 100));
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i)
    threads.emplace_back(worker, segment, raylet, seed * 100 + i, monotonic_ns() + run_ns);
  for (std::thread& thread : threads) thread.join();
  check_store(*raylet);
  for (uint64_t i = 0; i < kStaying + kIds; ++i) raylet->erase(make_id(number(i)), Wait::yes);
  StoreStats stats = stats_of(*raylet);
  CHECK(stats.used == 0 && stats.objects == 0 && stats.clients == 1);
  check_store(*raylet);
  raylet->drop();
}

// ---- lookups while the table churns ---------------------------------------------------------------

// One thread inserts and removes empty objects as fast as it can; entries wander between the two
// buckets. The other looks for objects that are always there.
void stress_lookup(int64_t run_ns) {
  Client* raylet = Client::open(Segment::create(64 << 10, 64, 64), kRaylet);
  CHECK(raylet);
  for (uint64_t i = 0; i < kStaying; ++i) CHECK(put(*raylet, number(i), 0));
  std::atomic<bool> over{false};
  std::thread churn([&] {
    for (uint64_t i = 0; !over.load(std::memory_order_relaxed); ++i) {
      put(*raylet, number(kStaying + i % kIds), 0);
      raylet->erase(make_id(number(kStaying + (i + kIds / 2) % kIds)), Wait::yes);
    }
  });
  for (int64_t end_ns = monotonic_ns() + run_ns; monotonic_ns() < end_ns;)
    for (uint64_t i = 0; i < 1000; ++i) {
      uint32_t slot;
      uint64_t word;
      CHECK(raylet->table().find(make_id(number(i % kStaying)), &slot, &word) == Found::yes);
    }
  over.store(true);
  churn.join();
  raylet->drop();
}

// ---- channel ------------------------------------------------------------------------------------

constexpr uint32_t kFrames = 40000;

// Sends kFrames numbered frames and receives as many; returns when both are done.
void peer(Channel& channel, Client& client, uint64_t seed) {
  Random random(seed);
  Doorbell bell;
  bell.open(&client.record());
  uint8_t frame[600];
  uint32_t sent = 0, received = 0;
  bool room = true;
  while (sent < kFrames || received < kFrames) {
    for (int burst = 0; burst < 50 && room && sent < kFrames; ++burst) {
      uint32_t size = 4 + (sent * 37) % 500;
      std::memcpy(frame, &sent, 4);
      fill(frame + 4, sent, size - 4);
      room = channel.send(frame, size, false) == Sent::ok;
      sent += room;
    }
    channel.tell();
    ClientRecord& record = client.record();
    if (record.summary.exchange(0)) record.ready[0].exchange(0);
    FrameHeader header;
    while (channel.incoming().next(&header) == Consumer::Next::frame) {
      channel.incoming().copy(frame, header.length);
      uint32_t number;
      std::memcpy(&number, frame, 4);
      CHECK(number == received && header.length == 4 + (number * 37) % 500);
      CHECK(intact(frame + 4, number, header.length - 4));
      channel.incoming().skip(header.length);
      ++received;
      if (random.below(64) == 0) break;
    }
    bool more = channel.incoming().next(&header) == Consumer::Next::frame;
    channel.finish();
    if (channel.take_room()) room = true;
    if (!more && !(room && sent < kFrames) && received + sent < 2 * kFrames)
      CHECK(bell.wait(random.below(2) * 20000, monotonic_ns() + 20'000'000'000) == 0);
  }
}

void stress_channel(uint64_t seed) {
  Segment* segment = Segment::create(64 << 10, 64, 64);
  Client* raylet = Client::open(segment, kRaylet);
  uint32_t slot;
  CHECK(raylet->reserve_client(&slot, Wait::yes) == Status::ok);
  segment->hold();
  Client* other = Client::open(segment, slot);
  // One mapping of the channel for both sides, so that the sanitizer sees the same addresses.
  Channel here, there;
  int fd;
  CHECK(here.create(raylet, 0, 2048, &fd) == 0);
  CHECK(there.join(other, 0, here.header(), here.capacity()) == 0);
  std::thread thread([&] { peer(there, *other, seed + 1); });
  peer(here, *raylet, seed);
  thread.join();
  there.close();
  here.close();
  close(fd);
  other->drop();
  raylet->drop();
}

}  // namespace
}  // namespace miniray::test

int main(int argc, char** argv) {
  double seconds = argc > 1 ? std::atof(argv[1]) : 2;
  uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
  std::printf("stress: %.1f s, seed %llu\n", seconds, static_cast<unsigned long long>(seed));
  miniray::test::stress_store(seed, static_cast<int64_t>(seconds * 1e9));
  miniray::test::stress_lookup(static_cast<int64_t>(seconds * 5e8));
  miniray::test::stress_channel(seed);
  std::printf("ok\n");
  return 0;
}
