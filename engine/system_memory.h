// Pages from the operating system, on which the block allocator and the scratch memory stand.
#pragma once
#include <stddef.h>

namespace attune {

constexpr size_t huge_page = size_t(2) << 20;

/// Fresh pages, aligned to a huge page where `bytes` is at least one; null if the system has none left.
void* system_alloc(size_t bytes);
void system_free(void* memory, size_t bytes);

/// Bytes now held through `system_alloc`.
size_t system_bytes();

} // namespace attune
