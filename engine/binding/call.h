// Reads and checks the arguments of one call from JavaScript. Every check of sizes and ranges in the engine is here: after a binding has
// read its arguments through a Call, a kernel can trust them.
#pragma once
#include <node_api.h>

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "../dtype.h"
#include "../kernels/activation.h"
#include "../memory.h"
#include "../stream.h"

namespace attune {

/// Becomes a JavaScript error. Type and Range are TypeError and RangeError; Engine is an Error with code "ENGINE".
struct Refused {
  enum Kind { Type, Range, Engine } kind;
  std::string message;
};

/// An error is already waiting in JavaScript (a getter threw): just leave.
struct PendingException {};

/// Row numbers, copied from an Int32Array and checked.
struct Indices {
  std::unique_ptr<int32_t[]> data;
  int64_t count;
};

class Call {
 public:
  Call(napi_env env, napi_callback_info info, const char* kernel);

  napi_env env() const { return env_; }
  const char* kernel() const { return kernel_; }
  napi_value value(int index) const { return arguments_[index]; }

  /// A whole number of 0 or more.
  int64_t size(int index, const char* name) const;
  /// A finite number.
  double number(int index, const char* name) const;
  bool flag(int index, const char* name) const;
  uint64_t seed(int index, const char* name) const;
  DType dtype(int index, const char* name) const;
  /// "f32" or "bf16".
  int compute(int index) const;
  Activation activation(int index) const;
  std::string text(int index, const char* name) const;
  /// Row numbers from 0 to `limit` − 1.
  Indices indices(int index, const char* name, int64_t limit, const char* limit_name) const;
  /// An Int32Array, as it is.
  std::vector<int32_t> int32s(int index, const char* name) const;
  /// A Float64Array of finite numbers.
  std::vector<double> float64s(int index, const char* name) const;
  /// The bytes of a typed array or DataView.
  std::pair<char*, size_t> bytes(int index, const char* name) const;

  // Properties of an argument that is an object. A getter may run code, so these come before any block is looked up.
  int64_t size(int index, const char* name, const char* property) const;
  double number(int index, const char* name, const char* property) const;
  bool flag(int index, const char* name, const char* property) const;
  uint64_t seed(int index, const char* name, const char* property) const;

  /// A block that holds at least the product of `sizes` elements. From the first block on, the call holds the engine's lock.
  float* floats(int index, const char* name, std::initializer_list<int64_t> sizes);
  /// The same for any type; throws if a row, the last of `sizes`, is no whole number of its blocks, or if a view begins between two numbers.
  void* elements(int index, const char* name, DType type, std::initializer_list<int64_t> sizes);
  /// The same for what the kernel writes. A call whose outputs are all empty is checked and then done: no kernel runs for nothing, whatever
  /// its other sizes are.
  float* output(int index, const char* name, std::initializer_list<int64_t> sizes);
  void* output(int index, const char* name, DType type, std::initializer_list<int64_t> sizes);
  /// A block, whatever its size.
  const Block& block(int index, const char* name);
  BlockId id(int index, const char* name) const;

  /// Takes the engine's lock, if the call does not hold it yet.
  void lock();

  template <class F>
  void enqueue(F&& body) {
    if (has_outputs_ && !writes_) return;
    attune::enqueue(Command(kernel_, std::forward<F>(body)));
  }

  [[noreturn]] void refuse(Refused::Kind kind, const std::string& message) const;

 private:
  double read_number(napi_value value, const std::string& name) const;
  int64_t read_size(napi_value value, const std::string& name) const;
  uint64_t read_seed(napi_value value, const std::string& name) const;
  bool read_flag(napi_value value, const std::string& name) const;
  napi_value property(int index, const char* name, const char* property) const;
  [[noreturn]] void refuse_value(napi_value value, const std::string& name, const char* expected) const;

  static constexpr size_t max_arguments = 12;
  napi_env env_;
  const char* kernel_;
  napi_value arguments_[max_arguments];
  std::unique_lock<std::mutex> lock_;
  bool has_outputs_ = false, writes_ = false;
};

/// An exported function: its name, and what answers a call. The answer may be null for undefined.
struct Export {
  const char* name;
  napi_value (*answer)(Call& call);
};

/// Makes the function for JavaScript; Refused and std::bad_alloc become errors there. `entry` must live for ever.
napi_value make_function(napi_env env, const Export* entry);

} // namespace attune
