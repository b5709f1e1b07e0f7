package node

import "testing"

func TestHierarchy(t *testing.T) {
	for _, c := range []struct {
		line string
		want Hierarchy
		ok   bool
	}{
		{"33 32 0:29 / /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu", Hierarchy{"/sys/fs/cgroup/cpu", "cpu"}, true},
		{"33 32 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct", Hierarchy{"/sys/fs/cgroup/cpu,cpuacct", "cpu,cpuacct"}, true},
		{"34 32 0:30 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/x,name=systemd", Hierarchy{"/sys/fs/cgroup/systemd", "none,name=systemd"}, true},
		{"35 32 0:31 /docker/1 /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids", Hierarchy{}, false},
		{"36 32 0:32 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw", Hierarchy{}, false},
		{"37 32 0:33 / / rw - ext4 /dev/vda rw", Hierarchy{}, false},
		{"", Hierarchy{}, false},
	} {
		got, ok := hierarchy(c.line)
		if ok != c.ok || ok && got != c.want {
			t.Errorf("%q: %v %v, want %v %v", c.line, got, ok, c.want, c.ok)
		}
	}
}
