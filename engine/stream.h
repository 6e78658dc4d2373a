// The queue of work. JavaScript's threads put commands in; one thread, which is also the pool's thread 0, runs them in order.
#pragma once
#include <cstddef>
#include <functional>
#include <new>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace attune {

/// A closure held in place: queueing one costs no allocation. Runs once at most.
class Command {
 public:
  static constexpr size_t capacity = 192;

  /// `name`, a literal, is what errors and the profile call it; null for none.
  template <class F>
  Command(const char* name, F&& body) : name_(name) {
    using Body = std::decay_t<F>;
    static_assert(sizeof(Body) <= capacity && alignof(Body) <= alignof(std::max_align_t), "raise Command::capacity");
    static_assert(std::is_nothrow_move_constructible_v<Body>, "commands move when the queue grows");
    new (body_) Body(std::forward<F>(body));
    run_ = [](void* b) { (*static_cast<Body*>(b))(); };
    relocate_ = [](void* from, void* to) noexcept {
      if (to) new (to) Body(std::move(*static_cast<Body*>(from)));
      static_cast<Body*>(from)->~Body();
    };
  }
  Command(Command&& other) noexcept : name_(other.name_), run_(other.run_), relocate_(other.relocate_) {
    if (relocate_) relocate_(other.body_, body_);
    other.relocate_ = nullptr;
  }
  Command& operator=(Command&&) = delete;
  ~Command() {
    if (relocate_) relocate_(body_, nullptr);
  }

  const char* name() const { return name_; }

  /// Runs the closure and destroys it.
  void run() {
    run_(body_);
    relocate_(body_, nullptr);
    relocate_ = nullptr;
  }

 private:
  alignas(std::max_align_t) unsigned char body_[capacity];
  const char* name_;
  void (*run_)(void*);
  void (*relocate_)(void* from, void* to) noexcept;
};

/// Starts the threads, if they do not run yet. Throws std::invalid_argument if ATTUNE_THREADS is wrong.
void start_stream();

/// Throws std::bad_alloc. What a command throws is kept for `take_failure`, and the queue goes on.
void enqueue(Command command);

/// Why a command failed, the first since the last call; empty if none did. Only on the stream's thread.
std::string take_failure();

/// True if all work queued so far is done.
bool stream_idle();

/// Runs `body` on the stream after all work queued so far, and waits for it. Throws what it throws.
void run_on_stream(const std::function<void()>& body);

struct Profile {
  std::string name;
  long calls;
  double seconds;
};

/// Time by command since the last call; empty unless ATTUNE_PROFILE=1.
std::vector<Profile> take_profile();

} // namespace attune
