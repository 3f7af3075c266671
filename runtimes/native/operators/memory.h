// Memory that operators work in: aligned, laid out in parts, and kept from run to run.
#pragma once

#include <cstddef>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

namespace tokexport {

// What parts of memory are aligned to, so that no two threads write to the same cache line.
inline constexpr size_t kCacheLine = 64;

// Memory that grows when more is wanted; what it held is lost then.
class Buffer {
 public:
  Buffer() = default;
  Buffer(Buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~Buffer() { release(); }

  std::byte* reserve(size_t bytes) {
    if (bytes > bytes_) {
      release();
      data_ = static_cast<std::byte*>(::operator new(bytes, std::align_val_t{kCacheLine}));
      bytes_ = bytes;
    }
    return data_;
  }

 private:
  void release() {
    ::operator delete(data_, std::align_val_t{kCacheLine});
    data_ = nullptr;
    bytes_ = 0;
  }

  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
};

// A place of `count` elements in memory, found once the memory is there.
template <typename Element>
struct Part {
  size_t offset;

  Element* in(std::byte* memory) const { return reinterpret_cast<Element*>(memory + offset); }
};

// Scratch memory of each thread.
struct PerThread {
  size_t offset;
  size_t stride;

  template <typename Element = void>
  Element* in(std::byte* memory, size_t thread) const {
    return static_cast<Element*>(static_cast<void*>(memory + offset + thread * stride));
  }
};

// Lays out one piece of memory in parts, each on cache lines of its own.
class Layout {
 public:
  template <typename Element>
  Part<Element> add(size_t count) {
    return {take(count * sizeof(Element))};
  }

  PerThread add_per_thread(size_t threads, size_t bytes) {
    const size_t stride = padded(bytes);
    return {take(threads * stride), stride};
  }

  size_t bytes() const { return bytes_; }

 private:
  static size_t padded(size_t bytes) { return (bytes + kCacheLine - 1) / kCacheLine * kCacheLine; }

  size_t take(size_t bytes) {
    const size_t offset = bytes_;
    bytes_ += padded(bytes);
    return offset;
  }

  size_t bytes_ = 0;
};

// Memory that a node keeps from run to run. Each run has a piece of its own, whatever threads they
// share: a thread that waits for its tasks may begin another run meanwhile.
class Workspace {
 public:
  class Lease {
   public:
    Lease(Workspace* from, Buffer buffer, size_t bytes)
        : from_(from), buffer_(std::move(buffer)), memory_(buffer_.reserve(bytes)) {}
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    ~Lease() { from_->take_back(std::move(buffer_)); }

    std::byte* memory() const { return memory_; }

   private:
    Workspace* from_;
    Buffer buffer_;
    std::byte* memory_;
  };

  Lease lease(size_t bytes) {
    Buffer buffer;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!free_.empty()) {
        buffer = std::move(free_.back());
        free_.pop_back();
      }
    }
    return Lease(this, std::move(buffer), bytes);
  }

 private:
  void take_back(Buffer buffer) {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(std::move(buffer));
  }

  std::mutex mutex_;
  std::vector<Buffer> free_;
};

}  // namespace tokexport
