#include <cstring>

#include "bindings.h"

namespace attune {

static napi_value id_value(const Call& call, BlockId id) {
  napi_value value;
  if (napi_create_double(call.env(), static_cast<double>(id), &value) != napi_ok) throw PendingException{};
  return value;
}

napi_value bind_alloc(Call& call) {
  const int64_t bytes = call.size(0, "bytes");
  call.lock();
  try {
    return id_value(call, alloc_block(static_cast<size_t>(bytes)));
  } catch (const std::bad_alloc&) {
    call.refuse(Refused::Engine, "the system has no memory left for a block of " + std::to_string(bytes) + " bytes; live blocks hold " +
                                     std::to_string(memory_stats().live));
  }
}

napi_value bind_free(Call& call) {
  call.block(0, "id");
  free_block(call.id(0, "id"));
  return nullptr;
}

static void check_range(const Call& call, const Block& block, int64_t offset, int64_t bytes) {
  const int64_t held = static_cast<int64_t>(block.bytes);
  if (offset > held || bytes > held - offset)
    call.refuse(Refused::Range, std::to_string(bytes) + " bytes from offset " + std::to_string(offset) + " are beyond the block's " +
                                    std::to_string(held));
}

napi_value bind_view(Call& call) {
  const int64_t offset = call.size(1, "byteOffset"), bytes = call.size(2, "bytes");
  check_range(call, call.block(0, "id"), offset, bytes);
  return id_value(call, view_block(call.id(0, "id"), static_cast<size_t>(offset), static_cast<size_t>(bytes)));
}

napi_value bind_write(Call& call) {
  const int64_t offset = call.size(1, "byteOffset");
  const auto [source, bytes] = call.bytes(2, "source");
  const Block& block = call.block(0, "id");
  check_range(call, block, offset, static_cast<int64_t>(bytes));
  if (bytes == 0) return nullptr;
  char* target = block.data + offset;
  if (stream_idle()) { // and it stays so: whoever would queue work waits for the lock
    std::memcpy(target, source, bytes);
    return nullptr;
  }
  std::unique_ptr<char[]> copy(new char[bytes]);
  std::memcpy(copy.get(), source, bytes);
  call.enqueue([target, copy = std::move(copy), bytes = bytes] { std::memcpy(target, copy.get(), bytes); });
  return nullptr;
}

} // namespace attune
