// The element-wise functions between layers, under the names that JavaScript uses.
#pragma once

namespace attune {

enum Activation : int { RELU, GELU, GELU_TANH, SILU, TANH, SIGMOID, ACTIVATION_COUNT };

constexpr const char* activation_names[] = {"relu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid"};
static_assert(sizeof activation_names / sizeof *activation_names == ACTIVATION_COUNT, "a name for each");

} // namespace attune
