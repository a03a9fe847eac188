// Death at every instruction. A child is single-stepped through store and channel calls; after each
// step (or each stride-th) the shared memory is copied, the copy's mutex is marked as the kernel
// would if the child died now, and survivors go to work on the copy. They must find: older objects
// untouched, each new object whole or absent, the child's memory and pins given back, only whole
// frames in a ring it wrote, none lost of a ring it read, and a doorbell that still wakes. A few real
// kills check the copying itself.
//
// Usage: native_death [stride] [phase]; stride 1 takes some 10 s. Exit status 77: no right to ptrace.

#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <functional>
#include <thread>

#include "../futex.h"
#include "../shm.h"
#include "support.h"

namespace miniray::test {
namespace {

constexpr uint64_t kOld = 5;    // objects that lie in the store before
constexpr uint64_t kNew = 100;  // numbers of what children make
constexpr uint32_t kFrames = 6;
constexpr uint64_t kRealKills = 12;
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr uint64_t kStride = 211;  // instrumented code takes many more steps
#else
constexpr uint64_t kStride = 11;
#endif

uint64_t size_of(uint64_t n) { return n % 5 * 40 + 10; }

// ---- the child's part: each instruction of these may be the last ------------------------------------

using Script = std::function<void(Client&)>;

void make_and_drop(Client& client) {
  for (uint64_t i = 0; i < 3; ++i) put(client, kNew + i, size_of(i));
  uint32_t held = pin(client, kNew + 1);
  client.erase(make_id(kNew + 1), Wait::yes);  // pinned: freed by the unpin
  unpin(client, held);
  client.erase(make_id(kNew), Wait::yes);
  uint32_t slot;
  uint8_t* data;
  client.allocate(make_id(kNew + 9), 50, true, &slot, &data, Wait::yes);
  client.abort(slot, Wait::yes);
  pin(client, 2);
}

void die_in_mutex(Client& client) {
  uint32_t slot;
  uint8_t* data;
  client.allocate(make_id(kNew), 1000, true, &slot, &data, Wait::yes);
  Header& header = client.segment().header();
  pthread_mutex_lock(&header.mutex);
  header.free_entry = 0xdead;  // as torn as it gets: all but the entries
  header.arena.rows = 0;
  header.arena.used = 1;
  _exit(0);
}

void rebuild_and_put(Client& client) { put(client, kNew + 1, 500); }

void send_frames(Client& client, int fd) {
  Channel mine;
  if (mine.attach(&client, 0, fd) != 0) _exit(1);
  uint8_t frame[200];
  for (uint32_t i = 0; i < kFrames; ++i) {
    fill(frame, i, 20 + i * 11);
    mine.send(frame, 20 + i * 11, false);
    mine.tell();
  }
}

// Frame `n`: its number and a pattern.
uint32_t make_frame(uint8_t* frame, uint32_t n) {
  uint32_t length = 20 + n % 7 * 11;
  fill(frame, n, length);
  std::memcpy(frame, &n, sizeof(n));
  return length;
}

// Reads `count` frames as a drainer does: clear the bit, read, give the room back; then sleep.
void receive_frames(Client& client, int fd, uint32_t count) {
  Channel mine;
  if (mine.attach(&client, 0, fd) != 0) _exit(1);
  ClientRecord& record = client.record();
  for (uint32_t seen = 0; seen < count;) {
    record.summary.exchange(0);
    record.ready[0].fetch_and(~1ull);
    FrameHeader header;
    while (mine.incoming().next(&header) == Consumer::Next::frame) {
      uint8_t frame[200];
      mine.incoming().copy(frame, header.length);
      mine.incoming().skip(header.length);
      if (++seen % 3 == 0) mine.finish();
    }
    mine.finish();
  }
  Doorbell bell;
  bell.open(&record);
  bell.take_wake();
  bell.wait(1000, monotonic_ns() + 200'000);
}

// ---- stepping -------------------------------------------------------------------------------------

pid_t start(Segment* segment, uint32_t slot, const Script& script, bool traced) {
  pid_t child = fork();
  CHECK(child >= 0);
  if (child != 0) return child;
  segment->hold();
  Client* client = Client::open(segment, slot);
  if (!client) _exit(1);
  if (traced && ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) _exit(77);
  if (traced) raise(SIGSTOP);
  script(*client);
  _exit(0);
}

// Steps the child up to `steps` times, calling `look` after each stride-th. True: it ended before.
bool step(pid_t child, uint64_t steps, uint64_t stride, uint64_t phase, const std::function<void()>& look) {
  int status;
  CHECK(waitpid(child, &status, 0) == child);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 77) std::exit(77);
  for (uint64_t i = 0; WIFSTOPPED(status) && i < steps; ++i) {
    if (look && i % stride == phase % stride) look();
    CHECK(ptrace(PTRACE_SINGLESTEP, child, nullptr, nullptr) == 0);
    CHECK(waitpid(child, &status, 0) == child);
  }
  if (!WIFSTOPPED(status)) {
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    return true;
  }
  kill(child, SIGKILL);
  CHECK(waitpid(child, &status, 0) == child);
  return false;
}

// The segment as it would be after the child's death now.
Segment* copy_after_death(Segment* from, pid_t child) {
  size_t bytes = from->header().segment_bytes;
  int fd = memfd_sealed("death", bytes);
  void* at = fd >= 0 ? map_shared(fd, 0, bytes, true) : nullptr;
  CHECK(at);
  std::memcpy(at, &from->header(), bytes);
  auto* header = static_cast<Header*>(at);
  auto* word = reinterpret_cast<uint32_t*>(&header->mutex);  // glibc: the futex word comes first
  if ((*word & FUTEX_TID_MASK) == static_cast<uint32_t>(child))
    *word = (*word & FUTEX_WAITERS) | FUTEX_OWNER_DIED;  // what the kernel's handle_futex_death does
  Segment* copy = Segment::attach(fd);
  CHECK(copy);
  copy->client(kRaylet).state.store(static_cast<uint32_t>(ClientState::free));
  munmap(at, bytes);
  close(fd);
  return copy;
}

// ---- the store ------------------------------------------------------------------------------------

uint64_t used_by_old() {
  uint64_t sum = 0;
  for (uint64_t n = 0; n < kOld; ++n) sum += block_bytes(size_of(n));
  return sum;
}

// What the raylet finds after reaping all that died.
void expect_whole(Client& raylet) {
  check_store(raylet);
  for (uint64_t n = kNew; n < kNew + 10; ++n) {
    uint32_t slot = pin(raylet, n);
    if (slot == kNoSlot) continue;
    CHECK(pinned_intact(raylet, slot, n));
    unpin(raylet, slot);
    CHECK(raylet.erase(make_id(n), Wait::yes) == Status::ok);
  }
  for (uint64_t n = 0; n < kOld; ++n) {
    uint32_t slot = pin(raylet, n);
    CHECK(slot != kNoSlot && pinned_intact(raylet, slot, n));
    unpin(raylet, slot);
    CHECK(!raylet.table().pinned(slot));
  }
  StoreStats stats = stats_of(raylet);
  CHECK(stats.objects == kOld && stats.used == used_by_old() && stats.clients == 1);
  CHECK(put(raylet, kNew, 30000));  // the heap works, and is in one piece
  CHECK(raylet.erase(make_id(kNew), Wait::yes) == Status::ok);
  check_store(raylet);
}

void expect_whole_after_death(Segment* segment, pid_t child) {
  Client* raylet = Client::open(copy_after_death(segment, child), kRaylet);
  CHECK(raylet);
  for (uint32_t slot = 1; slot < 4; ++slot) reap(*raylet, slot);
  expect_whole(*raylet);
  raylet->drop();
}

Client* new_raylet() {
  Client* raylet = Client::open(Segment::create(48 << 10, 64, 64), kRaylet);
  CHECK(raylet);
  for (uint64_t n = 0; n < kOld; ++n) CHECK(put(*raylet, n, size_of(n)));
  return raylet;
}

uint32_t new_client(Client& raylet) {
  uint32_t slot;
  CHECK(raylet.reserve_client(&slot, Wait::yes) == Status::ok);
  return slot;
}

// `torn`: another client has died in the mutex before, and the heap is to be rebuilt.
uint64_t deaths_in_store(const Script& script, bool torn, uint64_t stride, uint64_t phase) {
  Client* raylet = new_raylet();
  uint32_t slot = new_client(*raylet), torn_slot = new_client(*raylet);
  if (torn) {
    int status;
    pid_t dead = start(&raylet->segment(), torn_slot, die_in_mutex, false);
    CHECK(waitpid(dead, &status, 0) == dead && WIFEXITED(status));
  }
  uint64_t deaths = 0;
  pid_t child = start(&raylet->segment(), slot, script, true);
  CHECK(step(child, ~0ull, stride, phase, [&] {
    expect_whole_after_death(&raylet->segment(), child);
    ++deaths;
  }));
  expect_whole_after_death(&raylet->segment(), child);
  raylet->drop();
  return deaths;
}

uint64_t real_deaths_in_store(Random& random) {
  Client* raylet = new_raylet();
  for (uint64_t i = 0; i < kRealKills; ++i) {
    uint32_t slot = new_client(*raylet);
    step(start(&raylet->segment(), slot, make_and_drop, true), random.below(4000), 1, 0, nullptr);
    reap(*raylet, slot);
    expect_whole(*raylet);
  }
  raylet->drop();
  return kRealKills;
}

// ---- channels ---------------------------------------------------------------------------------------

// Frames that a consumer finds in a copy of the channel's memory.
uint32_t count_frames(const Channel& channel) {
  size_t bytes = sizeof(ChannelHeader) + 2 * size_t{channel.capacity()};
  auto* copy = static_cast<ChannelHeader*>(std::aligned_alloc(kPage, (bytes + kPage - 1) / kPage * kPage));
  std::memcpy(static_cast<void*>(copy), channel.header(), bytes);
  Consumer consumer;
  consumer.open(&copy->ring[1], reinterpret_cast<uint8_t*>(copy + 1) + copy->capacity, copy->capacity);
  uint32_t count = 0;
  FrameHeader header;
  for (;; ++count) {
    Consumer::Next next = consumer.next(&header);
    CHECK(next != Consumer::Next::corrupt);
    if (next == Consumer::Next::empty) break;
    uint8_t frame[200];
    CHECK(header.length == 20 + count * 11);
    consumer.copy(frame, header.length);
    CHECK(intact(frame, count, header.length));
    consumer.skip(header.length);
  }
  std::free(copy);
  return count;
}

// A consumer that sleeps since before the child's death is woken by another producer's news.
void expect_wakes(Segment* segment, pid_t child) {
  Segment* copy = copy_after_death(segment, child);
  ClientRecord& record = copy->client(kRaylet);
  uint32_t word = record.sleep.load(), unmarked = word & ~kKnocked;
  record.sleep.store(unmarked);
  int rc = -1;
  std::thread sleeper([&] { rc = futex_wait(record.sleep, unmarked, monotonic_ns() + 5'000'000'000); });
  usleep(300);  // likely asleep by now; if not, it meets the mark, as a real one would
  record.sleep.store(word);
  uint32_t never = kNeverKnocked;
  ring(record, 1, &never);
  sleeper.join();
  CHECK(rc == 0 || rc == EAGAIN);
  CHECK(record.ready[0].load() & 2);
  copy->drop();
}

// A consumer that goes to sleep after the child's death finds the bit that the child set.
void expect_noticed(Segment* segment, pid_t child) {
  Segment* copy = copy_after_death(segment, child);
  Doorbell bell;
  bell.open(&copy->client(kRaylet));
  CHECK(bell.wait(0, monotonic_ns() + 5'000'000'000) == 0 && bell.rung());
  copy->drop();
}

// The producer goes on after its consumer's death: it meets no lock, what was not read is still
// there, and what it writes until the ring is full follows in order.
void expect_producer_goes_on(const Channel& channel, uint32_t written) {
  size_t bytes = sizeof(ChannelHeader) + 2 * size_t{channel.capacity()};
  auto* copy = static_cast<ChannelHeader*>(std::aligned_alloc(kPage, (bytes + kPage - 1) / kPage * kPage));
  std::memcpy(static_cast<void*>(copy), channel.header(), bytes);
  auto* ring_bytes = reinterpret_cast<uint8_t*>(copy + 1);
  Producer producer;
  producer.open(&copy->ring[0], ring_bytes, copy->capacity);
  Consumer consumer;
  consumer.open(&copy->ring[0], ring_bytes, copy->capacity);
  uint8_t frame[200];
  while (producer.write(frame, make_frame(frame, written), false)) ++written;
  producer.publish();
  FrameHeader header;
  uint32_t next = ~0u;
  while (consumer.next(&header) == Consumer::Next::frame) {
    uint8_t expected[200];
    uint32_t number;
    consumer.copy(frame, header.length);
    consumer.skip(header.length);
    std::memcpy(&number, frame, sizeof(number));
    CHECK(next == ~0u || number == next);
    CHECK(header.length == make_frame(expected, number) && !std::memcmp(frame, expected, header.length));
    next = number + 1;
  }
  CHECK(next == written);
  std::free(copy);
}

uint64_t deaths_of_reader(uint64_t stride, uint64_t phase) {
  Client* raylet = new_raylet();
  Channel channel;
  int fd;
  CHECK(channel.create(raylet, 0, 1024, &fd) == 0);
  uint8_t frame[200];
  uint32_t written = 0, slot = new_client(*raylet), last_word = 0;
  while (channel.send(frame, make_frame(frame, written), false) == Sent::ok) ++written;
  ClientRecord& reader = raylet->segment().client(slot);
  uint64_t deaths = 0;
  Script script = [&](Client& client) { receive_frames(client, fd, written); };
  pid_t child = start(&raylet->segment(), slot, script, true);
  CHECK(step(child, ~0ull, stride, phase, [&] {
    expect_producer_goes_on(channel, written);
    if (reader.sleep.load() != last_word) {  // knocking at a dead reader's door returns
      Segment* copy = copy_after_death(&raylet->segment(), child);
      uint32_t never = kNeverKnocked;
      ring(copy->client(slot), 0, &never);
      copy->drop();
    }
    last_word = reader.sleep.load();
    ++deaths;
  }));
  CHECK(written > 8 && channel.take_room() && last_word != 0);
  close(fd);
  channel.close();
  raylet->drop();
  return deaths;
}

uint64_t deaths_in_channel(uint64_t stride, uint64_t phase) {
  Client* raylet = new_raylet();
  Channel channel;
  int fd;
  CHECK(channel.create(raylet, 0, 1024, &fd) == 0);
  ClientRecord& record = raylet->record();
  record.sleep.store(7 << kEpochShift | kAsleep);  // the child has to knock
  uint32_t slot = new_client(*raylet), frames = 0, last_word = 0;
  uint64_t deaths = 0;
  pid_t child = start(&raylet->segment(), slot, [&](Client& client) { send_frames(client, fd); }, true);
  CHECK(step(child, ~0ull, stride, phase, [&] {
    uint32_t found = count_frames(channel);
    CHECK(found == frames || found == frames + 1);
    frames = found;
    if (record.sleep.load() != last_word) expect_wakes(&raylet->segment(), child);
    last_word = record.sleep.load();
    if (record.ready[0].load() & 1) expect_noticed(&raylet->segment(), child);
    ++deaths;
  }));
  CHECK(count_frames(channel) == kFrames && record.sleep.load() & kKnocked);
  close(fd);
  channel.close();
  raylet->drop();
  return deaths;
}

void report(const char* where, uint64_t deaths) {
  std::printf("%s: survived %llu deaths\n", where, static_cast<unsigned long long>(deaths));
  std::fflush(stdout);
}

}  // namespace
}  // namespace miniray::test

int main(int argc, char** argv) {
  using namespace miniray::test;
  uint64_t stride = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : kStride;
  uint64_t phase = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 0;
  Random random(phase + 1);
  report("store", deaths_in_store(make_and_drop, false, stride, phase));
  report("rebuild", deaths_in_store(rebuild_and_put, true, stride * 5, phase));
  report("channel", deaths_in_channel(stride, phase));
  report("reader", deaths_of_reader(stride, phase));
  report("killed for real", real_deaths_in_store(random));
  return 0;
}
