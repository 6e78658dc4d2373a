// Blocks of memory, cached and in stream order. Where a block lies is decided when `alloc` is called; since commands run in the order they
// were queued, the memory of a freed block can go to a new block at once: whoever writes there comes after whoever read there.
//
// All of this is used under `engine_mutex`, from looking a block up until the command that uses it is queued.
#pragma once
#include <cstddef>
#include <cstdint>
#include <mutex>

namespace attune {

using BlockId = uint64_t;

struct Block {
  char* data = nullptr;
  size_t bytes = 0;
};

/// The lock that JavaScript's threads (main and workers) hold in a call. The stream's thread never takes it.
std::mutex& engine_mutex();

/// A new block, 64-byte aligned. Throws std::bad_alloc if the system has no memory left.
BlockId alloc_block(size_t bytes);

/// Part of a block as a block of its own. The caller has checked that the part lies inside.
BlockId view_block(BlockId id, size_t offset, size_t bytes);

/// False if there is no such block.
bool free_block(BlockId id);

/// Null if there is no such block, or no longer.
const Block* find_block(BlockId id);

struct MemoryStats {
  size_t live, peak, reserved;
};
MemoryStats memory_stats();
void reset_peak();

} // namespace attune
