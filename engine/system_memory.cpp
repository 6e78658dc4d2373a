#include "system_memory.h"

#include <atomic>
#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace attune {

static std::atomic<size_t> held{0};

#if defined(__linux__)

// mmap, not malloc: pages come only when touched, and munmap gives them back for certain.
void* system_alloc(size_t bytes) {
  const size_t slack = bytes >= huge_page ? huge_page : 0;
  void* mapped = mmap(nullptr, bytes + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  char* memory = static_cast<char*>(mapped);
  if (slack) {
    const size_t before = (huge_page - reinterpret_cast<size_t>(memory) % huge_page) % huge_page;
    if (before) munmap(memory, before);
    if (slack - before) munmap(memory + before + bytes, slack - before);
    memory += before;
    madvise(memory, bytes, MADV_HUGEPAGE);
  }
  held += bytes;
  return memory;
}

void system_free(void* memory, size_t bytes) {
  if (!memory) return;
  munmap(memory, bytes);
  held -= bytes;
}

#else

static constexpr std::align_val_t page{4096};

void* system_alloc(size_t bytes) {
  void* memory = operator new(bytes, page, std::nothrow);
  if (memory) held += bytes;
  return memory;
}

void system_free(void* memory, size_t bytes) {
  if (!memory) return;
  operator delete(memory, page);
  held -= bytes;
}

#endif

size_t system_bytes() { return held; }

} // namespace attune
