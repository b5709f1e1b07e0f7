package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"tapestry.dev/tapestry/test/kubernetes/image"
	"tapestry.dev/tapestry/test/kubernetes/node"
)

// Up brings up a new cluster, and returns when all nodes are registered. They are not Ready, since there is no network
// yet. After an error only the logs are left.
func (l Lab) Up(ctx context.Context, o Options) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("nodes with their own containerd need root: run this as root")
	}
	group, err := l.cgroups()
	if err != nil {
		return err
	}
	if pids, err := group.processes(); err != nil {
		return err
	} else if len(pids) > 0 {
		return fmt.Errorf("the cluster in %s is up: take it down with \"klab down\"", l.Work)
	}
	for _, program := range []string{"containerd", "ctr", "runc", "nsenter"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("%w: install the packages that test/kubernetes/README.md names", err)
		}
	}
	archive, err := l.pack()
	if err != nil {
		return fmt.Errorf("pack the images: %w", err)
	}
	if err := os.RemoveAll(l.Dir()); err != nil {
		return err
	}
	if err := os.MkdirAll(l.Dir(), 0o755); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Down())
		}
	}()
	began := time.Now()
	u := &upping{Lab: l, options: o, group: group, archive: archive}
	if err := u.nodes(); err != nil {
		return err
	}
	if err := u.controlPlane(); err != nil {
		return err
	}
	if err := u.registered(ctx); err != nil {
		return err
	}
	slog.Info("the nodes are registered", "took", time.Since(began).Round(10*time.Millisecond))
	return nil
}

// pack returns the archive of the images that every cluster needs.
func (l Lab) pack() (string, error) {
	images, err := image.Cache(l.Cache()).Kubernetes(l.Bin)
	if err != nil {
		return "", err
	}
	return image.Archive(l.Images(), "kubernetes", images)
}

// upping is a lab that is being brought up.
type upping struct {
	Lab
	options Options
	group   cgroups
	archive string
	state   State
	// ended has a channel for each process that should not end.
	ended []<-chan error
}

// nodes starts the processes that hold the namespaces, connects the namespaces, and lets the nodes begin. The nodes
// prepare while the control plane starts, and then wait for it.
func (u *upping) nodes() error {
	lock, err := makeMountPoints()
	if err != nil {
		return err
	}
	defer lock.Close()
	outside, err := u.hold(u.group, "outside", HoldArgument, &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}, lock)
	if err != nil {
		return err
	}
	u.ended = append(u.ended, outside.done)
	u.state.Outside = outside.cmd.Process.Pid
	var starting []*waiting
	for i := 1; i <= u.options.Nodes; i++ {
		name := fmt.Sprintf("node-%d", i)
		userNS := name == u.options.UserNS
		w, err := u.startNode(u.group, name, userNS)
		if err != nil {
			return err
		}
		starting = append(starting, w)
		u.ended = append(u.ended, w.done)
		u.state.Nodes = append(u.state.Nodes, Node{Name: name, Addrs: nodeAddrs(i, u.options.DualStack), PID: w.cmd.Process.Pid, UserNS: userNS})
	}
	// This comes before anything takes time, since Down and the other commands read the state.
	if err := u.write(u.state); err != nil {
		return err
	}
	ns, err := namespaceOf(u.state.Outside)
	if err != nil {
		return err
	}
	defer ns.close()
	bridge, err := makeBridge(ns, u.options.DualStack)
	if err != nil {
		return err
	}
	for i, n := range u.state.Nodes {
		if err := connect(ns, bridge, n); err != nil {
			return err
		}
		err := starting[i].begin(node.Config{
			Name: n.Name, Addrs: n.Addrs, UserNS: n.UserNS,
			Dir: u.nodeDir(n.Name), Images: u.imagesOf(n),
			Bin: u.Bin, ControlPlane: u.credentials(n),
			Cgroup: "/" + filepath.Join(u.cgroup(), n.Name), Archives: []string{u.archive},
			ClusterDNS: ClusterDNS, Upstream: Outside, Forward: u.options.Forward,
		})
		if err != nil {
			return fmt.Errorf("begin %s: %w", n.Name, err)
		}
	}
	return outside.begin(nil)
}

// controlPlane starts the control plane, and waits until its controllers work.
func (u *upping) controlPlane() error {
	cmd, err := u.controlPlaneCommand(u.state, u.options.DualStack)
	if err != nil {
		return err
	}
	done, err := u.start(cmd, u.group, "controlplane")
	if err != nil {
		return err
	}
	u.ended = append(u.ended, done)
	u.state.ControlPlane = cmd.Process.Pid
	if err := u.write(u.state); err != nil {
		return err
	}
	err = u.until(time.Minute, "the control plane is not ready", func() error {
		_, err := os.Stat(filepath.Join(u.controlPlaneDir(), "ready"))
		return err
	})
	if err != nil {
		return err
	}
	for _, n := range u.state.Nodes {
		if n.UserNS {
			if err := u.lendCredentials(n); err != nil {
				return fmt.Errorf("give %s its credentials: %w", n.Name, err)
			}
		}
	}
	return nil
}

func (l Lab) controlPlaneCommand(s State, dual bool) (*exec.Cmd, error) {
	services, pods := serviceCIDR, podCIDR
	if dual {
		services, pods = services+","+serviceCIDR6, pods+","+podCIDR6
	}
	var nodes []string
	for _, n := range s.Nodes {
		nodes = append(nodes, n.Name+"="+strings.Join(n.Addrs, "+"))
	}
	argv, err := s.In(s.Nodes[0].Name, filepath.Join(l.Bin, "controlplane"), "up",
		"-dir", l.controlPlaneDir(), "-bind", "0.0.0.0", "-advertise", s.Nodes[0].Addrs[0], "-port", strconv.Itoa(APIPort),
		"-service-cidr", services, "-pod-cidr", pods, "-nodes", strings.Join(nodes, ","))
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd, nil
}

// registered waits for the Nodes of all kubelets. It also marks the first Node as the one with the API server, as
// kubeadm does. Kubelets may not do this themselves, and without the mark agents do not believe that a node has the API
// server's address.
func (u *upping) registered(ctx context.Context) error {
	args := []string{"get", "--output=name"}
	for _, n := range u.state.Nodes {
		args = append(args, "node/"+n.Name)
	}
	err := u.until(2*time.Minute, "not all nodes are registered", func() error { return u.try(ctx, args...) })
	if err != nil {
		return err
	}
	return u.try(ctx, "label", "--overwrite", "node", u.state.Nodes[0].Name, "node-role.kubernetes.io/control-plane=")
}

// try runs kubectl.
func (u *upping) try(ctx context.Context, args ...string) error {
	argv, err := u.KubectlCommand(u.state, args...)
	if err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// until calls try every 100 ms until it succeeds. It fails as soon as a process has ended.
func (u *upping) until(timeout time.Duration, what string, try func() error) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(timeout); ; <-tick.C {
		err := try()
		if err == nil {
			return nil
		}
		for _, e := range u.ended {
			select {
			case err := <-e:
				return err
			default:
			}
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s after %v: %w (logs in %s)", what, timeout, err, u.Dir())
		}
	}
}

// KubectlCommand returns the command that runs kubectl as administrator, in the first node's network.
func (l Lab) KubectlCommand(s State, args ...string) ([]string, error) {
	return s.In(s.Nodes[0].Name, append([]string{l.Kubectl(), "--kubeconfig", l.Kubeconfig()}, args...)...)
}

// Down ends all processes of the lab, and removes its cgroups and everything else that it made outside of Work. Logs
// stay until the next Up; the images of the nodes and the caches stay longer. Down works whatever happened before, also
// on a lab that is not up.
func (l Lab) Down() error {
	group, err := l.cgroups()
	if err != nil {
		return err
	}
	if err := group.kill(); err != nil {
		return err
	}
	if err := group.remove(); err != nil {
		return err
	}
	if err := removeMountPoints(); err != nil {
		return err
	}
	if err := os.Remove(l.stateFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// These directories are large, or have secrets in them.
	dirs, err := filepath.Glob(filepath.Join(l.Dir(), "node-*", "var-lib-*"))
	if err != nil {
		return err
	}
	lent, err := filepath.Glob(filepath.Join(l.Dir(), "node-*", "controlplane"))
	if err != nil {
		return err
	}
	for _, dir := range append(append(dirs, lent...), l.controlPlaneDir()) {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return nil
}
