#include "call.h"

#include <cmath>
#include <cstring>
#include <new>
#include <stdexcept>

namespace attune {

namespace {

constexpr double max_size = 9007199254740991.0; // 2⁵³ − 1

void check(napi_status status) {
  if (status != napi_ok) throw PendingException{};
}

/// A value as a short piece of text, for messages.
std::string describe(napi_env env, napi_value value) {
  napi_valuetype type;
  if (napi_typeof(env, value, &type) != napi_ok) return "something unreadable";
  switch (type) {
    case napi_undefined: return "undefined";
    case napi_null: return "null";
    case napi_boolean: return "a boolean";
    case napi_function: return "a function";
    case napi_bigint: return "a bigint";
    case napi_symbol: return "a symbol";
    case napi_object: return "an object";
    case napi_external: return "an external";
    case napi_number: {
      napi_value as_text;
      char text[64] = "";
      if (napi_coerce_to_string(env, value, &as_text) == napi_ok) napi_get_value_string_utf8(env, as_text, text, sizeof text, nullptr);
      return text;
    }
    case napi_string: {
      char text[32] = "";
      napi_get_value_string_utf8(env, value, text, sizeof text, nullptr);
      return "\"" + std::string(text) + "\"";
    }
  }
  return "something unknown";
}

std::string shape_text(std::initializer_list<int64_t> sizes) {
  std::string text;
  for (const int64_t size : sizes) text += (text.empty() ? "" : " × ") + std::to_string(size);
  return text;
}

/// Throws Refused where the product is beyond any memory.
int64_t product(const char* kernel, std::initializer_list<int64_t> sizes) {
  int64_t total = 1;
  bool too_many = false, none = false;
  for (const int64_t size : sizes) {
    none |= size == 0;
    // A 0 hides nothing: kernels may multiply the other sizes.
    too_many |= __builtin_mul_overflow(total, size == 0 ? 1 : size, &total);
  }
  if (too_many || total > int64_t(1) << 56)
    throw Refused{Refused::Range, std::string(kernel) + ": " + shape_text(sizes) + " elements are too many"};
  return none ? 0 : total;
}

} // namespace

Call::Call(napi_env env, napi_callback_info info, const char* kernel) : env_(env), kernel_(kernel) {
  size_t count = max_arguments; // missing arguments become undefined
  check(napi_get_cb_info(env, info, &count, arguments_, nullptr, nullptr));
}

void Call::refuse(Refused::Kind kind, const std::string& message) const { throw Refused{kind, std::string(kernel_) + ": " + message}; }

void Call::refuse_value(napi_value value, const std::string& name, const char* expected) const {
  refuse(Refused::Type, name + " must be " + expected + ", got " + describe(env_, value));
}

double Call::read_number(napi_value value, const std::string& name) const {
  double number;
  if (napi_get_value_double(env_, value, &number) != napi_ok) refuse_value(value, name, "a number");
  return number;
}

int64_t Call::read_size(napi_value value, const std::string& name) const {
  const double number = read_number(value, name);
  if (!(number >= 0 && number <= max_size) || number != std::floor(number))
    refuse(Refused::Range, name + " must be a whole number of 0 or more, got " + describe(env_, value));
  return static_cast<int64_t>(number);
}

bool Call::read_flag(napi_value value, const std::string& name) const {
  bool flag;
  if (napi_get_value_bool(env_, value, &flag) != napi_ok) refuse_value(value, name, "true or false");
  return flag;
}

uint64_t Call::read_seed(napi_value value, const std::string& name) const {
  uint64_t seed;
  bool lossless;
  if (napi_get_value_bigint_uint64(env_, value, &seed, &lossless) != napi_ok) refuse_value(value, name, "a bigint");
  if (!lossless) refuse(Refused::Range, name + " must be a bigint from 0 to 2⁶⁴ − 1");
  return seed;
}

napi_value Call::property(int index, const char* name, const char* property) const {
  napi_valuetype type;
  check(napi_typeof(env_, value(index), &type));
  if (type != napi_object) refuse_value(value(index), name, "an object");
  napi_value result;
  check(napi_get_named_property(env_, value(index), property, &result));
  return result;
}

int64_t Call::size(int index, const char* name) const { return read_size(value(index), name); }

int64_t Call::size(int index, const char* name, const char* of) const {
  return read_size(property(index, name, of), std::string(name) + "." + of);
}

double Call::number(int index, const char* name) const {
  const double number = read_number(value(index), name);
  if (!std::isfinite(number)) refuse(Refused::Range, std::string(name) + " must be a finite number, got " + describe(env_, value(index)));
  return number;
}

double Call::number(int index, const char* name, const char* of) const {
  const napi_value read = property(index, name, of);
  const double number = read_number(read, std::string(name) + "." + of);
  if (!std::isfinite(number)) refuse(Refused::Range, std::string(name) + "." + of + " must be a finite number, got " + describe(env_, read));
  return number;
}

bool Call::flag(int index, const char* name) const { return read_flag(value(index), name); }

bool Call::flag(int index, const char* name, const char* of) const {
  return read_flag(property(index, name, of), std::string(name) + "." + of);
}

uint64_t Call::seed(int index, const char* name) const { return read_seed(value(index), name); }

uint64_t Call::seed(int index, const char* name, const char* of) const {
  return read_seed(property(index, name, of), std::string(name) + "." + of);
}

std::string Call::text(int index, const char* name) const {
  char text[32];
  size_t length; // a NUL is a character like others
  if (napi_get_value_string_utf8(env_, value(index), text, sizeof text, &length) != napi_ok) refuse_value(value(index), name, "a string");
  return {text, length};
}

DType Call::dtype(int index, const char* name) const {
  const std::string wanted = text(index, name);
  std::string known;
  for (int type = 0; type < DTYPE_COUNT; type++) {
    if (wanted == dtype_info[type].name) return static_cast<DType>(type);
    known += (known.empty() ? "" : ", ") + std::string(dtype_info[type].name);
  }
  refuse(Refused::Range, std::string(name) + " is \"" + wanted + "\", expected one of " + known);
}

int Call::compute(int index) const {
  const std::string wanted = text(index, "compute");
  if (wanted != "f32" && wanted != "bf16") refuse(Refused::Range, "compute is \"" + wanted + "\", expected f32 or bf16");
  return wanted == "bf16" ? 1 : 0;
}

Activation Call::activation(int index) const {
  const std::string wanted = text(index, "kind");
  std::string known;
  for (int kind = 0; kind < ACTIVATION_COUNT; kind++) {
    if (wanted == activation_names[kind]) return static_cast<Activation>(kind);
    known += (known.empty() ? "" : ", ") + std::string(activation_names[kind]);
  }
  refuse(Refused::Range, "kind is \"" + wanted + "\", expected one of " + known);
}

std::vector<int32_t> Call::int32s(int index, const char* name) const {
  napi_typedarray_type type;
  size_t length;
  void* data;
  if (napi_get_typedarray_info(env_, value(index), &type, &length, &data, nullptr, nullptr) != napi_ok || type != napi_int32_array)
    refuse_value(value(index), name, "an Int32Array");
  std::vector<int32_t> copy(length);
  if (length > 0) std::memcpy(copy.data(), data, length * sizeof(int32_t));
  return copy;
}

std::vector<double> Call::float64s(int index, const char* name) const {
  napi_typedarray_type type;
  size_t length;
  void* data;
  if (napi_get_typedarray_info(env_, value(index), &type, &length, &data, nullptr, nullptr) != napi_ok || type != napi_float64_array)
    refuse_value(value(index), name, "a Float64Array");
  std::vector<double> copy(length);
  if (length > 0) std::memcpy(copy.data(), data, length * sizeof(double));
  for (size_t i = 0; i < length; i++)
    if (!std::isfinite(copy[i]))
      refuse(Refused::Range, std::string(name) + "[" + std::to_string(i) + "] must be a finite number, got " + std::to_string(copy[i]));
  return copy;
}

Indices Call::indices(int index, const char* name, int64_t limit, const char* limit_name) const {
  napi_typedarray_type type;
  size_t length;
  void* data;
  if (napi_get_typedarray_info(env_, value(index), &type, &length, &data, nullptr, nullptr) != napi_ok || type != napi_int32_array)
    refuse_value(value(index), name, "an Int32Array");
  Indices copy{std::unique_ptr<int32_t[]>(new int32_t[length]), static_cast<int64_t>(length)};
  if (length > 0) std::memcpy(copy.data.get(), data, length * sizeof(int32_t));
  for (size_t i = 0; i < length; i++) { // on the copy: a shared array could change in between
    if (copy.data[i] < 0 || copy.data[i] >= limit)
      refuse(Refused::Range, std::string(name) + "[" + std::to_string(i) + "] is " + std::to_string(copy.data[i]) + ", expected 0 to " +
                                 std::to_string(limit - 1) + " (" + limit_name + " is " + std::to_string(limit) + ")");
  }
  return copy;
}

std::pair<char*, size_t> Call::bytes(int index, const char* name) const {
  const napi_value view = value(index);
  void* data = nullptr;
  size_t length = 0;
  bool is_typed = false, is_dataview = false;
  check(napi_is_typedarray(env_, view, &is_typed));
  check(napi_is_dataview(env_, view, &is_dataview));
  if (is_typed) {
    napi_typedarray_type type;
    check(napi_get_typedarray_info(env_, view, &type, &length, &data, nullptr, nullptr));
    switch (type) {
      case napi_int8_array:
      case napi_uint8_array:
      case napi_uint8_clamped_array: break;
      case napi_int16_array:
      case napi_uint16_array: length *= 2; break;
      case napi_int32_array:
      case napi_uint32_array:
      case napi_float32_array: length *= 4; break;
      case napi_float64_array:
      case napi_bigint64_array:
      case napi_biguint64_array: length *= 8; break;
      default: refuse_value(view, name, "a typed array of a known type");
    }
  } else if (is_dataview) {
    check(napi_get_dataview_info(env_, view, &length, &data, nullptr, nullptr));
  } else {
    refuse_value(view, name, "a typed array or DataView");
  }
  return {static_cast<char*>(data), data ? length : 0};
}

void Call::lock() {
  if (!lock_.owns_lock()) lock_ = std::unique_lock<std::mutex>(engine_mutex());
}

BlockId Call::id(int index, const char* name) const { return static_cast<BlockId>(read_size(value(index), name)); }

const Block& Call::block(int index, const char* name) {
  lock();
  const BlockId wanted = id(index, name);
  const Block* found = find_block(wanted);
  if (!found) refuse(Refused::Range, std::string(name) + ": there is no block " + std::to_string(wanted) + ", or it was freed");
  return *found;
}

void* Call::elements(int index, const char* name, DType type, std::initializer_list<int64_t> sizes) {
  const Block& found = block(index, name);
  const DTypeInfo& layout = dtype_info[type];
  const int64_t row = *(sizes.end() - 1);
  if (row % layout.block != 0)
    refuse(Refused::Range, std::string(name) + ": a row of " + std::to_string(row) + " is no whole number of " + layout.name + " blocks of " +
                               std::to_string(layout.block));
  const int64_t count = product(kernel_, sizes);
  const size_t needed = static_cast<size_t>(bytes_of(type, count));
  if (found.bytes < needed)
    refuse(Refused::Range, std::string(name) + " needs " + std::to_string(needed) + " bytes (" + shape_text(sizes) + " " + layout.name +
                               "), but block " + std::to_string(id(index, name)) + " has " + std::to_string(found.bytes));
  const size_t alignment = layout.block > 1 ? 1 : static_cast<size_t>(layout.bytes);
  if (reinterpret_cast<uintptr_t>(found.data) % alignment != 0)
    refuse(Refused::Range, std::string(name) + ": block " + std::to_string(id(index, name)) + " is a view that begins at no multiple of " +
                               std::to_string(alignment) + " bytes, as " + layout.name + " needs it");
  return found.data;
}

float* Call::floats(int index, const char* name, std::initializer_list<int64_t> sizes) {
  return static_cast<float*>(elements(index, name, F32, sizes));
}

void* Call::output(int index, const char* name, DType type, std::initializer_list<int64_t> sizes) {
  void* const data = elements(index, name, type, sizes);
  has_outputs_ = true;
  writes_ |= product(kernel_, sizes) > 0;
  return data;
}

float* Call::output(int index, const char* name, std::initializer_list<int64_t> sizes) {
  return static_cast<float*>(output(index, name, F32, sizes));
}

namespace {

void throw_engine_error(napi_env env, const std::string& message) { napi_throw_error(env, "ENGINE", message.c_str()); }

napi_value answer_call(napi_env env, napi_callback_info info) {
  void* data = nullptr;
  if (napi_get_cb_info(env, info, nullptr, nullptr, nullptr, &data) != napi_ok) return nullptr;
  const Export& entry = *static_cast<const Export*>(data);
  try {
    Call call(env, info, entry.name);
    return entry.answer(call);
  } catch (const Refused& refused) {
    switch (refused.kind) {
      case Refused::Type: napi_throw_type_error(env, nullptr, refused.message.c_str()); break;
      case Refused::Range: napi_throw_range_error(env, nullptr, refused.message.c_str()); break;
      case Refused::Engine: throw_engine_error(env, refused.message); break;
    }
  } catch (const PendingException&) {
    bool pending = false;
    if (napi_is_exception_pending(env, &pending) != napi_ok || !pending) throw_engine_error(env, std::string(entry.name) + ": Node-API failed");
  } catch (const std::bad_alloc&) {
    throw_engine_error(env, std::string(entry.name) + ": the system has no memory left");
  } catch (const std::exception& error) {
    throw_engine_error(env, std::string(entry.name) + ": " + error.what());
  }
  return nullptr;
}

} // namespace

napi_value make_function(napi_env env, const Export* entry) {
  napi_value function;
  check(napi_create_function(env, entry->name, NAPI_AUTO_LENGTH, answer_call, const_cast<Export*>(entry), &function));
  return function;
}

} // namespace attune
