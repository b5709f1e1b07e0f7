package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestUserNS: on a node inside a user namespace ("klab up --userns node-2") everything is inside: containerd, kubelet,
// Tapestry, pods, and the network namespaces with the TAPs. All other tests check that pods have a network there.
func TestUserNS(t *testing.T) {
	tested := false
	for _, n := range state.Nodes {
		if !n.UserNS {
			continue
		}
		tested = true
		t.Run(n.Name, func(t *testing.T) {
			theirs, err := namespaceOf(n.PID, "user")
			if err != nil {
				t.Fatal(err)
			}
			if own, err := namespaceOf(os.Getpid(), "user"); err != nil || own == theirs {
				t.Fatalf("the node is in the user namespace of this test, %d (%v)", own, err)
			}
			pod := start(t, netexec(namespace(t), "inside", n.Name))[0]
			_, container, _ := strings.Cut(pod.Status.ContainerStatuses[0].ContainerID, "://")
			ofNode := "/" + filepath.Base(theLab.Work) + "/" + n.Name // has kubelet and containerd, and the pods below
			found := map[string]int{}
			for pid, what := range processes(t) {
				switch cgroup := what.cgroup; {
				case strings.Contains(cgroup, container):
					found["pod"] = pid
				case !strings.Contains(cgroup, ofNode+"\n") && !strings.Contains(cgroup, ofNode+"/"):
				case what.program == "containerd", what.program == "kubelet":
					found[what.program] = pid
				case what.program == "tapestry" && len(what.argv) > 1:
					found[what.argv[1]] = pid
				}
			}
			for _, name := range []string{"containerd", "kubelet", "agent", "keeper", "pod"} {
				pid, ok := found[name]
				if !ok {
					t.Errorf("no process of %s", name)
					continue
				}
				if got, err := namespaceOf(pid, "user"); err != nil || got != theirs {
					t.Errorf("%s is in user namespace %d (%v), want the node's, %d", name, got, err, theirs)
				}
				if got, err := ownerOfNetwork(pid); err != nil || got != theirs {
					t.Errorf("the network namespace of %s belongs to user namespace %d (%v), want the node's, %d", name, got, err, theirs)
				}
			}
			ids, err := inPod(t.Context(), pod, "cat", "/proc/self/uid_map")
			if got := strings.Join(strings.Fields(ids), " "); err != nil || got != "0 100000 65536" {
				t.Errorf("ids of the pod: %q (%v), want 65536 from 100000 on", got, err)
			}
			// The range differs from the usual one, since it cannot contain groups that are not mapped.
			pings, err := onNode(t.Context(), n.Name, "cat", "/proc/sys/net/ipv4/ping_group_range")
			if got := strings.Join(strings.Fields(pings), " "); err != nil || got != "60820 60820" {
				t.Errorf("groups that may ping: %q (%v), want the agent's, 60820", got, err)
			}
			tellsReady(t, n.Name)
		})
	}
	if !tested {
		t.Skip("no node is inside a user namespace: klab up --userns node-2")
	}
}

// tellsReady asks the node's agent for its state, like an operator.
func tellsReady(t *testing.T, node string) {
	t.Helper()
	list, err := client.CoreV1().Pods("kube-system").List(t.Context(), metav1.ListOptions{LabelSelector: agents, FieldSelector: "spec.nodeName=" + node})
	if err != nil || len(list.Items) != 1 {
		t.Fatalf("%d agents on %s, %v", len(list.Items), node, err)
	}
	eventually(t, soon, "status of "+node, func() error {
		out, err := inPod(t.Context(), &list.Items[0], "/tapestry", "status")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}

// A process is a process of the machine.
type process struct {
	program, cgroup string
	argv            []string
}

// processes returns all processes of the machine; the test runs in the machine's PID namespace.
func processes(t *testing.T) map[int]process {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	all := map[int]process{}
	for _, dir := range dirs {
		var pid int
		if _, err := fmt.Sscan(filepath.Base(dir), &pid); err != nil {
			continue
		}
		cmdline, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err == nil {
			var cgroup []byte
			if cgroup, err = os.ReadFile(filepath.Join(dir, "cgroup")); err == nil {
				argv := strings.Split(strings.TrimSuffix(string(cmdline), "\x00"), "\x00")
				all[pid] = process{filepath.Base(argv[0]), string(cgroup), argv}
			}
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ESRCH) {
			t.Fatal(err)
		}
	}
	return all
}

// namespaceOf returns the inode number of a namespace of the process.
func namespaceOf(pid int, kind string) (uint64, error) {
	var s unix.Stat_t
	err := unix.Stat(fmt.Sprintf("/proc/%d/ns/%s", pid, kind), &s)
	return s.Ino, err
}

// ownerOfNetwork returns the inode number of the user namespace that owns the process's network namespace.
func ownerOfNetwork(pid int) (uint64, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	owner, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_USERNS)
	if err != nil {
		return 0, fmt.Errorf("owner of %s: %w", f.Name(), err)
	}
	defer unix.Close(owner)
	var s unix.Stat_t
	err = unix.Fstat(owner, &s)
	return s.Ino, err
}
