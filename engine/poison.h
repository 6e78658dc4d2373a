// Tells the address sanitizer which bytes of the engine's own memory are in use: it knows only what comes from malloc. Nothing in other builds.
#pragma once
#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace attune {

#if defined(__SANITIZE_ADDRESS__)
constexpr bool sanitized = true;
#else
constexpr bool sanitized = false;
#endif

/// Of `bytes` bytes, the first `used` may be touched, and the others may not.
inline void poison_behind([[maybe_unused]] const void* memory, [[maybe_unused]] size_t used, [[maybe_unused]] size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(memory, used);
  __asan_poison_memory_region(static_cast<const char*>(memory) + used, bytes - used);
#endif
}

} // namespace attune
