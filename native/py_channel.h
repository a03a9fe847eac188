// What py_channel.cc and py_mailbox.cc share: the two objects that hold one another. A Mailbox knows
// its channels by number and borrows them; a Channel holds its Mailbox and its owner.
#pragma once

#include "channel.h"
#include "python.h"

namespace miniray {

struct ChannelObject;

struct MailboxObject {
  PyObject_HEAD
  Client* client;  // a counted reference; nullptr: closed
  Doorbell bell;
  ChannelObject** channels;  // by number, borrowed; kMaxChannels of them
  uint32_t hint;             // lowest number that may be free
  uint32_t cursor;           // where the next poll starts, so that none starves
};

struct ChannelObject {
  PyObject_HEAD
  MailboxObject* mailbox;
  PyObject* owner;
  Channel channel;
  int fd;            // the creator's, until the peer has attached; else -1
  uint8_t* message;  // fragments joined so far
  size_t length, room;
  PyObject* weakrefs;
};

// The open client of a Mailbox in the process that opened it; nullptr with an exception set.
Client* client_in(MailboxObject* self);

// A channel object that is not open yet; nullptr with an exception set.
ChannelObject* new_channel(MailboxObject* mailbox, PyObject* owner);

void close_channel(ChannelObject* self);

enum class Drained { all, more, failed };

// Moves up to *left messages, and news of room, to the list. Anything may run while Python allocates:
// the collector may even close this channel.
Drained drain(ChannelObject* self, PyObject* list, Py_ssize_t* left);

}  // namespace miniray
