// The engine's threads. Included by the per-ISA files too: C headers only, and nothing inline but what a caller's own lambda makes unique.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace attune {

/// Threads that `parallel` uses, the caller's included.
int thread_count();

/// Changes the number of threads. Only on the stream's thread, like `parallel`, or before it starts. Throws std::runtime_error if the system
/// does not start so many.
void set_thread_count(int threads);

void parallel_tasks(int64_t tasks, void (*run)(const void* body, int64_t task, int thread), const void* body);

/// Calls body(task, thread) for every task in [0, tasks) and returns when all are done. Which thread takes which task is left to chance, so
/// a task's result may depend on its number only. Only on the stream's thread, never nested. The caller is thread 0. Throws what a task
/// throws; tasks that had not begun by then are left out.
template <class Body>
static inline void parallel(int64_t tasks, const Body& body) {
  parallel_tasks(tasks, [](const void* b, int64_t task, int thread) { (*static_cast<const Body*>(b))(task, thread); }, &body);
}

/// Memory of `thread`'s own, 64-byte aligned, contents undefined; valid until that thread asks again. Grows, never shrinks. Throws
/// std::runtime_error if the system has none left.
void* scratch(int thread, size_t bytes);

/// Memory that all threads of a kernel share, by slot; to be asked for outside `parallel`. Grows, never shrinks.
constexpr int shared_scratch_slots = 8;
void* shared_scratch(int slot, size_t bytes);

} // namespace attune
