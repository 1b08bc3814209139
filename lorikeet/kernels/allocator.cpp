// Large tensors in memory of their own, apart from the C library's heap.
//
// A training step makes and frees the same few hundred tensors again and again. Between the small blocks of a whole
// process they leave holes that fit nothing: SmolLM2's step, which needs 0.5 GiB at once, held 0.75. Here blocks of 64 KiB
// and more lie in one region that grows at its end; a new one takes the smallest hole it fits into, and holes that
// touch are one. On recorded steps that loses less than 1 %. The region asks for large pages, so most of it is
// reached without a walk through page tables. PyTorch is given the allocator through its own interface; what is small, and
// what the system refuses, is left to PyTorch's.
#if defined(__linux__) && __has_include(<c10/core/CPUAllocator.h>)
#include <c10/core/CPUAllocator.h>
#endif

// libstdc++'s, which PyTorch's packages are made with: with another library a DataPtr has another shape
#if defined(C10_API) && defined(__GLIBCXX__)
#include <iterator>
#include <map>
#include <mutex>
#include <pthread.h>
#include <set>
#include <sys/mman.h>

namespace {
// Nodes of the trees below. They are made before they are needed: where memory ends, a block can be refused, but
// freeing one needs a hole's nodes and may not fail.
struct Nodes {
    union Node {
        Node* next;
        char room[64];
    };
    Node* spare = nullptr;
    size_t count = 0;

    bool ensure(size_t wanted) {
        const size_t BYTES = 1 << 20;
        while (count < wanted) {
            char* at = (char*)mmap(nullptr, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (at == (char*)MAP_FAILED) return false;
            for (size_t i = 0; i < BYTES / sizeof(Node); i++) give(at + i * sizeof(Node));
        }
        return true;
    }
    void* take() {
        Node* node = spare;
        spare = node->next;
        count--;
        return node;
    }
    void give(void* at) {
        Node* node = (Node*)at;
        node->next = spare;
        spare = node;
        count++;
    }
};
Nodes nodes;

template <class T> struct FromNodes {
    using value_type = T;
    FromNodes() = default;
    template <class U> FromNodes(const FromNodes<U>&) {}
    T* allocate(size_t) {  // trees ask for one at a time
        static_assert(sizeof(T) <= sizeof(Nodes::Node), "a node is larger");
        return (T*)nodes.take();
    }
    void deallocate(T* at, size_t) { nodes.give(at); }
    template <class U> bool operator==(const FromNodes<U>&) const { return true; }
    template <class U> bool operator!=(const FromNodes<U>&) const { return false; }
};
template <class K, class V> using Map = std::map<K, V, std::less<K>, FromNodes<std::pair<const K, V>>>;
using BySize = std::set<std::pair<size_t, char*>, std::less<std::pair<size_t, char*>>, FromNodes<std::pair<size_t, char*>>>;

const size_t LEAST = 64 << 10, GROWTH = 16 << 20, ALIGNED = 64, HUGE_PAGE = 2 << 20;

// Holes and blocks of the region. Not safe for threads by itself.
class Region {
    Map<char*, size_t> holes_;  // by address
    BySize by_size_;            // the same, smallest first
    Map<char*, size_t> taken_;
    char* end_ = nullptr;  // of the last part that was mapped
    char *lowest_ = nullptr, *highest_ = nullptr;

    void add(char* at, size_t size) {
        holes_[at] = size;
        by_size_.insert({size, at});
    }
    void remove(Map<char*, size_t>::iterator hole) {
        by_size_.erase({hole->second, hole->first});
        holes_.erase(hole);
    }
    // Make a hole, joined with those beside it. Parts mapped apart never touch: a page is left between them.
    void join(char* at, size_t size) {
        auto next = holes_.lower_bound(at);
        if (next != holes_.end() && at + size == next->first) {
            size += next->second;
            auto gone = next++;
            remove(gone);
        }
        if (next != holes_.begin()) {
            auto before = std::prev(next);
            if (before->first + before->second == at) {
                at = before->first, size += before->second;
                remove(before);
            }
        }
        add(at, size);
    }
    // More memory, where the region ends if that is free. The hole at the end counts towards `size`.
    bool grow(size_t size) {
        size_t last = 0;
        if (!holes_.empty()) {
            auto hole = std::prev(holes_.end());
            if (hole->first + hole->second == end_) last = hole->second;
        }
        const int kind = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        if (end_) {
            size_t more = (size - last + GROWTH - 1) / GROWTH * GROWTH;
            void* at = mmap(end_, more, PROT_READ | PROT_WRITE, kind | MAP_FIXED_NOREPLACE, -1, 0);
            if (at == (void*)end_) return mapped((char*)at, more);
            if (at != MAP_FAILED) munmap(at, more);
        }
        size_t wanted = (size + GROWTH - 1) / GROWTH * GROWTH + HUGE_PAGE;
        char* at = (char*)mmap(nullptr, wanted, PROT_READ | PROT_WRITE, kind, -1, 0);
        if (at == (char*)MAP_FAILED) return false;
        size_t before = HUGE_PAGE - size_t(at) % HUGE_PAGE;  // at least a page, so that parts do not touch
        munmap(at, before);
        size_t after = HUGE_PAGE - before;
        if (after) munmap(at + wanted - after, after);
        return mapped(at + before, wanted - HUGE_PAGE);
    }
    bool mapped(char* at, size_t size) {
        madvise(at, size, MADV_HUGEPAGE);
        end_ = at + size;
        if (!lowest_ || at < lowest_) lowest_ = at;
        if (end_ > highest_) highest_ = end_;
        join(at, size);
        return true;
    }

public:
    size_t used = 0, most = 0;

    void* take(size_t size) {
        if (!nodes.ensure(taken_.size() + 16)) return nullptr;  // one more for each block that will be freed
        size = (size + ALIGNED - 1) / ALIGNED * ALIGNED;
        auto fit = by_size_.lower_bound({size, nullptr});
        if (fit == by_size_.end()) {
            if (!grow(size)) return nullptr;
            fit = by_size_.lower_bound({size, nullptr});
        }
        char* at = fit->second;
        size_t whole = fit->first;
        remove(holes_.find(at));
        if (whole > size) add(at + size, whole - size);
        taken_[at] = size;
        used += size;
        if (used > most) most = used;
        return at;
    }
    // whether it was a block of the region
    bool free(void* at) {
        if ((char*)at < lowest_ || (char*)at >= highest_) return false;
        auto found = taken_.find((char*)at);
        if (found == taken_.end()) return false;
        size_t size = found->second;
        taken_.erase(found);
        used -= size;
        join((char*)at, size);
        return true;
    }
    // pages of holes go back to the system; their addresses stay ours
    void give_back() {
        for (auto& [at, size] : holes_) {
            char* from = (char*)((size_t(at) + 4095) / 4096 * 4096);
            char* to = (char*)(size_t(at + size) / 4096 * 4096);
            if (to > from) madvise(from, size_t(to - from), MADV_DONTNEED);
        }
    }
};

// never destroyed: tensors may outlive everything
Region& region = *new Region;
std::mutex& door = *new std::mutex;

c10::DeleterFnPtr free_small = nullptr;

void free_any(void* at) {
    {
        std::lock_guard<std::mutex> inside(door);
        if (region.free(at)) return;
    }
    free_small(at);
}

struct Large final : c10::Allocator {
    c10::Allocator* small;
    explicit Large(c10::Allocator* other) : small(other) {}
    c10::DataPtr allocate(size_t size) override {
        if (size >= LEAST) {
            door.lock();
            void* at = region.take(size);
            door.unlock();
            if (at) return {at, at, &free_any, c10::Device(c10::DeviceType::CPU)};
        }
        void* at = small->raw_allocate(size);  // which also says what is wrong where there is no memory
        return {at, at, &free_any, c10::Device(c10::DeviceType::CPU)};
    }
    c10::DeleterFnPtr raw_deleter() const override { return &free_any; }
    void copy_data(void* to, const void* from, size_t size) const override { default_copy_data(to, from, size); }
};
Large* installed = nullptr;
}  // namespace

// *answer = 1 if large tensors of this process are made here from now on
extern "C" void allocator_install(long* answer) {
    c10::Allocator* before = c10::GetCPUAllocator();
    if (!installed && before->raw_deleter()) {
        free_small = before->raw_deleter();
        installed = new Large(before);
        c10::SetCPUAllocator(installed, 0xff);
        pthread_atfork([] { door.lock(); }, [] { door.unlock(); }, [] { door.unlock(); });
    }
    *answer = installed && c10::GetCPUAllocator() == installed;
}

extern "C" void allocator_give_back() {
    std::lock_guard<std::mutex> inside(door);
    region.give_back();
}

// bytes of blocks now, and at most so far
extern "C" void allocator_used(long* now, long* most) {
    std::lock_guard<std::mutex> inside(door);
    *now = long(region.used), *most = long(region.most);
}
#else
extern "C" void allocator_install(long* answer) { *answer = 0; }
extern "C" void allocator_give_back() {}
extern "C" void allocator_used(long* now, long* most) { *now = *most = 0; }
#endif
