// Questions and switches that concern the whole process.
#include "../cpu.h"
#include "../pool.h"
#include "bindings.h"

namespace attune {

namespace {

void check(napi_status status) {
  if (status != napi_ok) throw PendingException{};
}

napi_value text_value(napi_env env, const std::string& text) {
  napi_value value;
  check(napi_create_string_utf8(env, text.c_str(), text.size(), &value));
  return value;
}

napi_value number_value(napi_env env, double number) {
  napi_value value;
  check(napi_create_double(env, number, &value));
  return value;
}

template <class List, class Convert>
napi_value list_value(napi_env env, const List& list, const Convert& convert) {
  napi_value array;
  check(napi_create_array(env, &array));
  uint32_t index = 0;
  for (const auto& item : list) check(napi_set_element(env, array, index++, convert(item)));
  return array;
}

napi_value object_value(napi_env env, std::initializer_list<std::pair<const char*, napi_value>> properties) {
  napi_value object;
  check(napi_create_object(env, &object));
  for (const auto& [name, value] : properties) check(napi_set_named_property(env, object, name, value));
  return object;
}

} // namespace

napi_value bind_info(Call& call) {
  napi_env env = call.env();
  return object_value(env, {
                               {"isa", text_value(env, tier().name)},
                               {"tiers", list_value(env, tiers(), [&](const Tier& t) { return text_value(env, t.name); })},
                               {"threads", number_value(env, thread_count())},
                               {"cpu", text_value(env, cpu_name())},
                               {"features", list_value(env, cpu_features(), [&](const std::string& f) { return text_value(env, f); })},
                           });
}

napi_value bind_stats(Call& call) {
  call.lock();
  const MemoryStats stats = memory_stats();
  napi_env env = call.env();
  return object_value(env, {
                               {"liveBytes", number_value(env, static_cast<double>(stats.live))},
                               {"peakLiveBytes", number_value(env, static_cast<double>(stats.peak))},
                               {"reservedBytes", number_value(env, static_cast<double>(stats.reserved))},
                           });
}

napi_value bind_reset_peak(Call& call) {
  call.lock();
  reset_peak();
  return nullptr;
}

napi_value bind_set_isa(Call& call) {
  const std::string wanted = call.text(0, "isa");
  std::string names;
  for (const Tier& t : tiers()) {
    names += (names.empty() ? "" : ", ") + std::string(t.name);
    if (wanted != t.name) continue;
    run_on_stream([&] { set_tier(t); });
    return nullptr;
  }
  call.refuse(Refused::Engine, "\"" + wanted + "\" is not among the tiers that this machine can run: " + names);
}

napi_value bind_set_threads(Call& call) {
  const int64_t threads = call.size(0, "threads");
  if (threads < 1 || threads > max_threads)
    call.refuse(Refused::Range, "threads must be from 1 to " + std::to_string(max_threads) + ", got " + std::to_string(threads));
  run_on_stream([=] { set_thread_count(static_cast<int>(threads)); });
  return nullptr;
}

napi_value bind_profile(Call& call) {
  napi_env env = call.env();
  return list_value(env, take_profile(), [&](const Profile& p) {
    return object_value(env, {
                                 {"name", text_value(env, p.name)},
                                 {"calls", number_value(env, static_cast<double>(p.calls))},
                                 {"seconds", number_value(env, p.seconds)},
                             });
  });
}

} // namespace attune
