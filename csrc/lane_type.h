// Integers as wide as a lane of float or double, and the number that rounds to an integer. Host and device.
#pragma once

namespace fastae {
namespace {

template <class T> struct Lane;
template <> struct Lane<float> {
  typedef int32_t I;
  typedef uint32_t U;
  static constexpr float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
};
template <> struct Lane<double> {
  typedef int64_t I;
  typedef uint64_t U;
  static constexpr double magic = 6755399441055744.0;  // 1.5 * 2^52
};

}  // namespace
}  // namespace fastae
