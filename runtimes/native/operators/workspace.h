// Room that a kernel keeps from run to run.
#pragma once

#include <mutex>
#include <utility>
#include <vector>

namespace tokexport {

// Each run that is on its way has a room of its own, whatever threads they share: one that waits
// for its tasks may begin another run meanwhile.
template <typename Element>
class Workspace {
 public:
  class Lease {
   public:
    Lease(Workspace* from, std::vector<Element> room) : from_(from), room_(std::move(room)) {}
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    ~Lease() { from_->take_back(std::move(room_)); }

    Element* data() const { return const_cast<Element*>(room_.data()); }

   private:
    Workspace* from_;
    std::vector<Element> room_;
  };

  Lease lease(size_t elements) {
    std::vector<Element> room;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!free_.empty()) {
        room = std::move(free_.back());
        free_.pop_back();
      }
    }
    if (room.size() < elements) room.resize(elements);
    return Lease(this, std::move(room));
  }

 private:
  void take_back(std::vector<Element> room) {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(std::move(room));
  }

  std::mutex mutex_;
  std::vector<std::vector<Element>> free_;
};

}  // namespace tokexport
