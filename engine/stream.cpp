#include "stream.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <map>
#include <mutex>
#include <thread>

#include "cpu.h"
#include "pool.h"
#include "relax.h"

namespace attune {

namespace {

struct Entry {
  long calls = 0;
  double seconds = 0.0;
};

struct Stream {
  std::mutex mutex;
  std::condition_variable wake;
  std::vector<Command> queued;
  std::atomic<bool> has_queued{false};
  bool sleeping = false;
  bool running = false;

  const bool profiling = [] {
    const char* wanted = std::getenv("ATTUNE_PROFILE");
    return wanted && std::string(wanted) == "1";
  }();
  std::mutex profile_mutex;
  std::map<std::string, Entry> profile;

  Stream() {
    set_thread_count(default_threads());
    std::thread([this] { loop(); }).detach();
  }

  std::string failure;

  void run(Command& command) {
    try {
      run_profiled(command);
    } catch (const std::exception& error) {
      if (failure.empty()) failure = (command.name() ? std::string(command.name()) + ": " : "") + error.what();
    }
  }

  void run_profiled(Command& command) {
    if (!profiling || !command.name()) return command.run();
    const char* name = command.name();
    const auto start = std::chrono::steady_clock::now();
    command.run();
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
    std::lock_guard<std::mutex> lock(profile_mutex);
    Entry& entry = profile[name];
    entry.calls++;
    entry.seconds += taken.count();
  }

  [[noreturn]] void loop() {
    std::vector<Command> batch;
    for (;;) {
      for (Command& command : batch) run(command);
      batch.clear();
      {
        std::lock_guard<std::mutex> lock(mutex);
        if (queued.empty()) running = false;
      }
      const bool soon = spin_until([&] { return has_queued.load(std::memory_order_acquire); });
      std::unique_lock<std::mutex> lock(mutex);
      if (!soon) {
        sleeping = true;
        wake.wait(lock, [&] { return !queued.empty(); });
        sleeping = false;
      }
      batch.swap(queued);
      has_queued.store(false, std::memory_order_relaxed);
    }
  }
};

// Never destroyed: its thread runs until the process is gone.
Stream& stream() {
  static Stream& instance = *new Stream;
  return instance;
}

} // namespace

void start_stream() { stream(); }

void enqueue(Command command) {
  Stream& s = stream();
  bool asleep;
  {
    std::lock_guard<std::mutex> lock(s.mutex);
    s.queued.push_back(std::move(command));
    s.has_queued.store(true, std::memory_order_release);
    s.running = true;
    asleep = s.sleeping;
  }
  if (asleep) s.wake.notify_one();
}

bool stream_idle() {
  Stream& s = stream();
  std::lock_guard<std::mutex> lock(s.mutex);
  return !s.running;
}

std::string take_failure() { return std::exchange(stream().failure, {}); }

void run_on_stream(const std::function<void()>& body) {
  std::mutex mutex;
  std::condition_variable finished;
  bool done = false;
  std::exception_ptr failure;
  enqueue(Command(nullptr, [&] {
    try {
      body();
    } catch (...) {
      failure = std::current_exception();
    }
    std::lock_guard<std::mutex> lock(mutex);
    done = true;
    finished.notify_one(); // under the lock: the waiter's stack must outlive this call
  }));
  std::unique_lock<std::mutex> lock(mutex);
  finished.wait(lock, [&] { return done; });
  if (failure) std::rethrow_exception(failure);
}

std::vector<Profile> take_profile() {
  Stream& s = stream();
  std::lock_guard<std::mutex> lock(s.profile_mutex);
  std::vector<Profile> list;
  for (const auto& [name, entry] : s.profile) list.push_back({name, entry.calls, entry.seconds});
  s.profile.clear();
  return list;
}

} // namespace attune
