#include "pool.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "poison.h"
#include "relax.h"
#include "system_memory.h"

namespace attune {

namespace {

// A job is open to workers while bit 31 of `state` is set. Its upper half is the job's number, its low bits count the workers inside.
// A worker may look at the job only after it has counted itself in, and the caller leaves only when the job is closed and empty: a
// worker that wakes too late finds the door shut, and nobody waits for it.
constexpr uint64_t open_bit = uint64_t(1) << 31;
constexpr uint64_t one_job = uint64_t(1) << 32;
constexpr uint64_t inside_mask = open_bit - 1;

struct Scratch {
  void* memory = nullptr;
  size_t bytes = 0;

  void* grow(size_t wanted) {
    if (wanted > bytes) {
      poison_behind(memory, bytes, bytes);
      system_free(memory, bytes);
      const size_t unit = wanted >= huge_page ? huge_page : size_t(4096);
      bytes = (wanted + unit - 1) / unit * unit;
      memory = system_alloc(bytes);
      if (!memory) {
        bytes = 0;
        throw std::runtime_error("the system has no memory left for " + std::to_string(wanted) + " bytes of workspace");
      }
    }
    poison_behind(memory, wanted, bytes);
    return memory;
  }
};

struct Pool {
  std::atomic<uint64_t> state{0};
  std::atomic<int64_t> next{0};
  int64_t tasks = 0;
  void (*run)(const void*, int64_t, int) = nullptr;
  const void* body = nullptr;
  std::exception_ptr failure; // of the job; under `mutex` while it is open

  std::mutex mutex;
  std::condition_variable wake;
  std::atomic<int> sleeping{0};
  std::atomic<bool> stop{false};
  std::atomic<int> threads{1}; // for those who ask from elsewhere
  std::vector<std::thread> workers;
  std::vector<Scratch> own{1};
  Scratch shared[shared_scratch_slots];

  void work(int thread) {
    try {
      for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) run(body, task, thread);
    } catch (...) {
      next.store(tasks, std::memory_order_relaxed);
      std::lock_guard<std::mutex> lock(mutex);
      failure = std::current_exception();
    }
  }

  bool has_news(uint64_t last) const {
    const uint64_t now = state.load();
    return stop.load() || ((now & open_bit) && now / one_job != last);
  }

  void wait_for_news(uint64_t last) {
    if (spin_until([&] { return has_news(last); })) return;
    std::unique_lock<std::mutex> lock(mutex);
    sleeping++;
    wake.wait(lock, [&] { return has_news(last); });
    sleeping--;
  }

  void worker(int thread) {
    uint64_t last = 0;
    for (;;) {
      wait_for_news(last);
      if (stop) return;
      uint64_t now = state.load();
      while ((now & open_bit) && now / one_job != last) {
        if (!state.compare_exchange_weak(now, now + 1)) continue;
        last = now / one_job;
        work(thread);
        state.fetch_sub(1);
        break;
      }
    }
  }

  void resize(int wanted) {
    stop = true;
    {
      std::lock_guard<std::mutex> lock(mutex);
      wake.notify_all();
    }
    for (auto& worker : workers) worker.join();
    workers.clear();
    stop = false;
    for (auto& scratch : own) system_free(scratch.memory, scratch.bytes);
    own.assign(wanted, Scratch{});
    for (threads = 1; threads < wanted; threads++) {
      try {
        workers.emplace_back([this, i = threads.load()] { worker(i); });
      } catch (const std::system_error&) {
        throw std::runtime_error("the system starts no more than " + std::to_string(threads) + " of " + std::to_string(wanted) +
                                 " threads; the engine goes on with these");
      }
    }
  }
};

// Never destroyed: at process exit its threads may still be at work.
Pool& pool() {
  static Pool& instance = *new Pool;
  return instance;
}

} // namespace

int thread_count() { return pool().threads; }

void set_thread_count(int threads) { pool().resize(threads); }

void parallel_tasks(int64_t tasks, void (*run)(const void*, int64_t, int), const void* body) {
  Pool& p = pool();
  if (tasks <= 1 || p.workers.empty()) {
    for (int64_t task = 0; task < tasks; task++) run(body, task, 0);
    return;
  }
  p.tasks = tasks;
  p.run = run;
  p.body = body;
  p.next.store(0, std::memory_order_relaxed);
  p.state.store((p.state.load() / one_job + 1) * one_job | open_bit);
  if (p.sleeping.load() > 0) {
    std::lock_guard<std::mutex> lock(p.mutex);
    p.wake.notify_all();
  }
  p.work(0);
  p.state.fetch_and(~open_bit);
  const auto empty = [&] { return (p.state.load() & inside_mask) == 0; };
  while (!spin_until(empty)) std::this_thread::yield();
  if (p.failure) std::rethrow_exception(std::exchange(p.failure, nullptr));
}

void* scratch(int thread, size_t bytes) { return pool().own[thread].grow(bytes); }

void* shared_scratch(int slot, size_t bytes) { return pool().shared[slot].grow(bytes); }

} // namespace attune
