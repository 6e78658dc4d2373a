// `read` and `sync`: promises that the stream keeps. They reject if work that was queued before could not be done.
#include <cstring>

#include "bindings.h"

namespace attune {

namespace {

/// One environment's way back from the stream: the main thread's, or a worker's.
struct Mailbox {
  napi_threadsafe_function notify = nullptr;
  int waiting = 0; // promises not yet settled; touched by the environment's own thread only

  std::mutex mutex;
  bool closed = false; // the environment is gone, or going
};

/// A promise, and what to do when it is kept. A read is copied twice, first to memory of our own: the stream must not write to an array whose
/// owner may be gone by then (transferred to another thread, or with its worker).
struct Request {
  std::shared_ptr<Mailbox> mailbox;
  napi_deferred deferred;
  napi_ref target = nullptr; // null for sync
  size_t bytes = 0;
  std::unique_ptr<char[]> copy;
  std::string failure;
};

void reject(napi_env env, napi_deferred deferred, bool range, const char* message) {
  napi_value text, code, error;
  if (napi_create_string_utf8(env, message, NAPI_AUTO_LENGTH, &text) != napi_ok) return;
  if (napi_create_string_utf8(env, "ENGINE", NAPI_AUTO_LENGTH, &code) != napi_ok) return;
  if ((range ? napi_create_range_error(env, nullptr, text, &error) : napi_create_error(env, code, text, &error)) != napi_ok) return;
  napi_reject_deferred(env, deferred, error);
}

/// The bytes of a typed array or DataView as they are now, or null if the array was detached or has shrunk.
char* bytes_now(napi_env env, napi_value view, size_t bytes) {
  napi_value buffer;
  size_t length = 0, offset = 0, buffer_bytes = 0;
  void *data = nullptr, *start = nullptr;
  napi_typedarray_type type;
  if (napi_get_typedarray_info(env, view, &type, &length, &data, &buffer, &offset) != napi_ok &&
      napi_get_dataview_info(env, view, &length, &data, &buffer, &offset) != napi_ok)
    return nullptr;
  bool detached = true;
  if (napi_is_detached_arraybuffer(env, buffer, &detached) != napi_ok || detached) return nullptr;
  if (length == 0 || !data) return nullptr;
  if (napi_get_arraybuffer_info(env, buffer, &start, &buffer_bytes) == napi_ok && (offset > buffer_bytes || bytes > buffer_bytes - offset))
    return nullptr;
  return static_cast<char*>(data);
}

void deliver(napi_env env, Request& request) {
  napi_value undefined;
  if (napi_get_undefined(env, &undefined) != napi_ok) return;
  napi_value view = nullptr;
  if (request.target) {
    napi_get_reference_value(env, request.target, &view);
    napi_delete_reference(env, request.target);
  }
  if (!request.failure.empty()) return reject(env, request.deferred, false, request.failure.c_str());
  if (request.target) {
    if (!request.copy) return reject(env, request.deferred, false, "read: the system has no memory left for a copy of the block");
    char* target = view ? bytes_now(env, view, request.bytes) : nullptr;
    if (!target) return reject(env, request.deferred, true, "read: target was detached or resized while the read was queued");
    std::memcpy(target, request.copy.get(), request.bytes);
  }
  napi_resolve_deferred(env, request.deferred, undefined);
}

/// Runs on the environment's thread. Without an environment there is nobody left to tell.
void on_delivery(napi_env env, napi_value, void*, void* data) {
  const std::unique_ptr<Request> request(static_cast<Request*>(data));
  if (!env) return;
  deliver(env, *request);
  Mailbox& mailbox = *request->mailbox;
  if (--mailbox.waiting == 0) napi_unref_threadsafe_function(env, mailbox.notify);
}

/// Runs on the stream's thread.
void post(std::unique_ptr<Request> request) {
  Mailbox& mailbox = *request->mailbox;
  const std::shared_ptr<Mailbox> keep = request->mailbox; // `request` may be gone before the lock is
  std::lock_guard<std::mutex> lock(mailbox.mutex);
  if (mailbox.closed) return;
  if (napi_call_threadsafe_function(mailbox.notify, request.get(), napi_tsfn_nonblocking) == napi_ok) request.release();
}

std::shared_ptr<Mailbox>& mailbox_of(napi_env env) {
  void* data = nullptr;
  if (napi_get_instance_data(env, &data) != napi_ok || !data) throw PendingException{};
  return *static_cast<std::shared_ptr<Mailbox>*>(data);
}

/// A new promise. It keeps the process alive until it is settled.
napi_value open_request(Call& call, Request& request) {
  napi_value promise;
  request.mailbox = mailbox_of(call.env());
  if (napi_create_promise(call.env(), &request.deferred, &promise) != napi_ok) throw PendingException{};
  if (request.mailbox->waiting++ == 0) napi_ref_threadsafe_function(call.env(), request.mailbox->notify);
  return promise;
}

} // namespace

void open_promises(napi_env env) {
  auto mailbox = std::make_unique<std::shared_ptr<Mailbox>>(std::make_shared<Mailbox>());
  napi_value name;
  if (napi_create_string_utf8(env, "attune", NAPI_AUTO_LENGTH, &name) != napi_ok ||
      napi_create_threadsafe_function(env, nullptr, nullptr, name, 0, 1, nullptr, nullptr, nullptr, on_delivery, &(*mailbox)->notify) != napi_ok ||
      napi_unref_threadsafe_function(env, (*mailbox)->notify) != napi_ok)
    throw PendingException{};
  // Runs before Node's own clean-up of the function above: hooks run in reverse order.
  const auto close = [](void* data) {
    Mailbox& mailbox = **static_cast<std::shared_ptr<Mailbox>*>(data);
    std::lock_guard<std::mutex> lock(mailbox.mutex);
    mailbox.closed = true;
  };
  const auto finalize = [](napi_env, void* data, void*) { delete static_cast<std::shared_ptr<Mailbox>*>(data); };
  std::shared_ptr<Mailbox>* const data = mailbox.release();
  if (napi_set_instance_data(env, data, finalize, nullptr) != napi_ok || napi_add_env_cleanup_hook(env, close, data) != napi_ok)
    throw PendingException{};
}

napi_value bind_sync(Call& call) {
  auto request = std::make_unique<Request>();
  const napi_value promise = open_request(call, *request);
  call.enqueue([request = std::move(request)]() mutable {
    request->failure = take_failure();
    post(std::move(request));
  });
  return promise;
}

napi_value bind_read(Call& call) {
  const int64_t offset = call.size(1, "byteOffset");
  const size_t bytes = call.bytes(2, "target").second;
  const Block& block = call.block(0, "id");
  const int64_t held = static_cast<int64_t>(block.bytes);
  if (offset > held || static_cast<int64_t>(bytes) > held - offset)
    call.refuse(Refused::Range, std::to_string(bytes) + " bytes from offset " + std::to_string(offset) + " are beyond the block's " +
                                    std::to_string(held));
  auto request = std::make_unique<Request>();
  request->bytes = bytes;
  if (bytes > 0 && napi_create_reference(call.env(), call.value(2), 1, &request->target) != napi_ok) throw PendingException{};
  const napi_value promise = open_request(call, *request);
  const char* source = block.data + offset;
  call.enqueue([request = std::move(request), source]() mutable {
    request->failure = take_failure();
    if (request->target && request->failure.empty()) {
      request->copy.reset(new (std::nothrow) char[request->bytes]);
      if (request->copy) std::memcpy(request->copy.get(), source, request->bytes);
    }
    post(std::move(request));
  });
  return promise;
}

} // namespace attune
