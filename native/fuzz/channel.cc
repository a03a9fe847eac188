// libFuzzer target: a channel whose memory the other side writes as it likes, at any time.
//
// The victim joins memory that the input has filled, then sends and receives while the input goes on
// overwriting shared words. Nothing may be read or written outside of the channel's memory (the
// address sanitizer watches its ends), and no loop may go on for ever.

#include <cstdlib>
#include <memory>

#include "../test/support.h"
#include "input.h"

namespace miniray::fuzz {
namespace {

constexpr uint32_t kCapacity = kMinCapacity;
constexpr size_t kBytes = sizeof(ChannelHeader) + 2 * kCapacity;

Client* victim() {
  static Client* client = [] {
    Segment* segment = Segment::create(1 << 16, 64, 64);
    CHECK(segment != nullptr);
    Client* made = Client::open(segment, kRaylet);
    CHECK(made != nullptr);
    return made;
  }();
  return client;
}

// What the peer can do: change 1, 4 or 8 bytes anywhere. Magic, version and capacity count only when
// the memory is attached.
void overwrite(ChannelHeader* header, Input& input) {
  size_t length = size_t{1} << input.below(4);
  size_t at = input.below(4) ? input.below(sizeof(ChannelHeader::side) + sizeof(ChannelHeader::ring) + 64)
                             : input.below(kBytes - 8);
  input.read(reinterpret_cast<uint8_t*>(header) + at, length);
}

void receive(Channel& channel) {
  for (int frames = 0; frames < 64; ++frames) {
    FrameHeader frame;
    Consumer::Next next = channel.incoming().next(&frame);
    if (next != Consumer::Next::frame) break;
    std::unique_ptr<uint8_t[]> to(new uint8_t[frame.length]);
    channel.incoming().copy(to.get(), frame.length);
    channel.incoming().skip(frame.length);
  }
  channel.finish();
}

void send(Channel& channel, Input& input) {
  size_t length = input.below(3 * kCapacity);
  std::unique_ptr<uint8_t[]> frame(new uint8_t[length]());
  if (channel.send(frame.get(), length, input.below(2)) == Sent::ok) channel.tell();
  channel.take_room();
}

void run(Input input) {
  void* memory = nullptr;
  CHECK(posix_memalign(&memory, kPage, kBytes) == 0);
  auto* header = static_cast<ChannelHeader*>(memory);
  input.read(header, 512);
  input.read(header + 1, 2 * kCapacity);
  header->side[1].attached.store(0);
  Channel channel;
  if (channel.join(victim(), 1, header, kCapacity) == 0) {
    while (!input.empty()) {
      switch (input.below(4)) {
        case 0: receive(channel); break;
        case 1: send(channel, input); break;
        default: overwrite(header, input);
      }
    }
    channel.close();
  }
  std::free(header);
}

}  // namespace
}  // namespace miniray::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  miniray::fuzz::run(miniray::fuzz::Input(bytes, size));
  return 0;
}
