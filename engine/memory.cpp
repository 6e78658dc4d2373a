#include "memory.h"

#include <algorithm>
#include <new>
#include <set>
#include <vector>

#include "poison.h"
#include "stream.h"
#include "system_memory.h"

namespace attune {

namespace {

constexpr size_t alignment = 64;
constexpr size_t small_limit = size_t(1) << 20;      // smaller blocks live in slabs of their own kind, so that one long-lived
constexpr size_t small_slab_bytes = size_t(8) << 20; // scalar does not cut a large slab in two
constexpr size_t large_slab_bytes = size_t(64) << 20;

/// Between blocks, for the sanitizer to notice who leaves one.
constexpr size_t gap = sanitized ? alignment : 0;

constexpr size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

struct Slab;

/// A stretch of a slab: free, or held by a block and its views.
struct Chunk {
  Slab* slab;
  char* data;
  size_t bytes;
  Chunk* before; // neighbours in the slab
  Chunk* after;
  int holders = 0; // 0: free
};

struct Slab {
  uint64_t number; // from 0, in the order in which they came
  char* data;
  size_t bytes;
  bool small;
};

/// By size, then by place: where a block goes follows from the calls alone, not from where the system put a slab. What is estimated before a
/// run (src/core/block-memory.ts) makes the same choices.
struct BySize {
  bool operator()(const Chunk* a, const Chunk* b) const {
    if (a->bytes != b->bytes) return a->bytes < b->bytes;
    return a->slab == b->slab ? a->data < b->data : a->slab->number < b->slab->number;
  }
};

// An id is a slot's number plus `slot_count` times the slot's generation, which grows with each use: an old id never finds a new block.
constexpr uint64_t slot_count = uint64_t(1) << 24;
constexpr uint64_t generation_count = uint64_t(1) << 29; // ids stay below 2⁵³, the integers that a JavaScript number holds

struct Slot {
  Chunk* chunk = nullptr; // null: not in use
  Block block;
  uint64_t generation = 0;
};

struct Allocator {
  std::set<Chunk*, BySize> free_chunks[2]; // large, small
  std::vector<Slot> slots{1};              // slot 0 stays empty, so that no id is 0
  std::vector<uint32_t> free_slots;
  size_t live = 0, peak = 0;
  uint64_t slabs = 0; // so far

  /// A whole empty slab, as its one free chunk.
  static bool is_empty_slab(const Chunk* chunk) { return !chunk->holders && !chunk->before && !chunk->after; }

  Chunk* take(size_t bytes) {
    const bool small = bytes < small_limit;
    auto& candidates = free_chunks[small];
    Slab before_all{0, nullptr, 0, small};
    Chunk wanted{&before_all, nullptr, bytes, nullptr, nullptr};
    auto best = candidates.lower_bound(&wanted);
    if (best == candidates.end()) best = candidates.insert(new_slab(bytes, small)).first;
    Chunk* chunk = *best;
    if (chunk->bytes > bytes) { // before anything changes: new may throw
      Chunk* rest = new Chunk{chunk->slab, chunk->data + bytes, chunk->bytes - bytes, chunk, chunk->after};
      candidates.erase(best);
      if (rest->after) rest->after->before = rest;
      chunk->after = rest;
      chunk->bytes = bytes;
      candidates.insert(rest);
    } else {
      candidates.erase(best);
    }
    chunk->holders = 1;
    live += bytes;
    peak = std::max(peak, live);
    return chunk;
  }

  void give_back(Chunk* chunk) {
    if (--chunk->holders > 0) return;
    live -= chunk->bytes;
    mark_used(chunk, 0);
    auto& others = free_chunks[chunk->slab->small];
    if (Chunk* before = chunk->before; before && !before->holders) {
      others.erase(before);
      chunk = absorb(before, chunk);
    }
    if (Chunk* after = chunk->after; after && !after->holders) {
      others.erase(after);
      chunk = absorb(chunk, after);
    }
    others.insert(chunk);
  }

  /// In stream order, as memory is used.
  static void mark_used(const Chunk* chunk, size_t used) {
    if (sanitized) enqueue(Command(nullptr, [=, data = chunk->data, bytes = chunk->bytes] { poison_behind(data, used, bytes); }));
  }

  static Chunk* absorb(Chunk* left, Chunk* right) {
    left->bytes += right->bytes;
    left->after = right->after;
    if (left->after) left->after->before = left;
    delete right;
    return left;
  }

  Chunk* new_slab(size_t bytes, bool small) {
    const size_t size = small ? small_slab_bytes : std::max(large_slab_bytes, round_up(bytes, huge_page));
    release_empty_slabs(size);
    char* data = static_cast<char*>(system_alloc(size));
    if (!data) {
      release_empty_slabs(SIZE_MAX);
      run_on_stream([] {}); // the releases are commands too
      data = static_cast<char*>(system_alloc(size));
    }
    if (!data) throw std::bad_alloc();
    poison_behind(data, 0, size);
    return new Chunk{new Slab{slabs++, data, size, small}, data, size, nullptr, nullptr};
  }

  /// Before more is taken from the system, slabs that nobody uses and that were too small go back to it, up to `bytes` of them. Queued work
  /// may still write there, so they go in stream order.
  void release_empty_slabs(size_t bytes) {
    for (auto& chunks : free_chunks) {
      for (auto at = chunks.begin(); at != chunks.end() && bytes > 0;) {
        Chunk* chunk = *at;
        if (!is_empty_slab(chunk)) {
          ++at;
          continue;
        }
        enqueue(Command(nullptr, [data = chunk->slab->data, size = chunk->slab->bytes] {
          poison_behind(data, size, size);
          system_free(data, size);
        }));
        bytes -= std::min(bytes, chunk->bytes);
        at = chunks.erase(at);
        delete chunk->slab;
        delete chunk;
      }
    }
  }

  BlockId name(Chunk* chunk, Block block) {
    if (free_slots.empty()) {
      if (slots.size() >= slot_count) throw std::bad_alloc();
      slots.emplace_back();
      free_slots.push_back(static_cast<uint32_t>(slots.size() - 1));
    }
    const uint32_t index = free_slots.back();
    free_slots.pop_back();
    Slot& slot = slots[index];
    slot.chunk = chunk;
    slot.block = block;
    return slot.generation * slot_count + index;
  }

  Slot* find(BlockId id) {
    const uint64_t index = id % slot_count;
    if (index >= slots.size()) return nullptr;
    Slot& slot = slots[index];
    return slot.chunk && slot.generation == id / slot_count ? &slot : nullptr;
  }
};

// Never destroyed: queued work may run until the process is gone.
Allocator& allocator() {
  static Allocator& instance = *new Allocator;
  return instance;
}

} // namespace

std::mutex& engine_mutex() {
  static std::mutex& instance = *new std::mutex;
  return instance;
}

BlockId alloc_block(size_t bytes) {
  Allocator& a = allocator();
  if (bytes > SIZE_MAX / 2) throw std::bad_alloc();
  Chunk* chunk = a.take(std::max(alignment, round_up(bytes, alignment)) + gap);
  Allocator::mark_used(chunk, bytes);
  return a.name(chunk, {chunk->data, bytes});
}

BlockId view_block(BlockId id, size_t offset, size_t bytes) {
  Allocator& a = allocator();
  const Slot of = *a.find(id);
  const BlockId view = a.name(of.chunk, {of.block.data + offset, bytes});
  of.chunk->holders++;
  return view;
}

bool free_block(BlockId id) {
  Allocator& a = allocator();
  Slot* slot = a.find(id);
  if (!slot) return false;
  a.free_slots.push_back(static_cast<uint32_t>(id % slot_count));
  Chunk* chunk = slot->chunk;
  slot->chunk = nullptr;
  slot->generation = (slot->generation + 1) % generation_count;
  a.give_back(chunk);
  return true;
}

const Block* find_block(BlockId id) {
  Slot* slot = allocator().find(id);
  return slot ? &slot->block : nullptr;
}

MemoryStats memory_stats() {
  const Allocator& a = allocator();
  return {a.live, a.peak, system_bytes()};
}

void reset_peak() {
  Allocator& a = allocator();
  a.peak = a.live;
}

} // namespace attune
