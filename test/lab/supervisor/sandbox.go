package supervisor

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"tapestry.dev/tapestry/kube/cni"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/tap"
	"tapestry.dev/tapestry/test/lab/kubelet"
	"tapestry.dev/tapestry/test/lab/process"
	"tapestry.dev/tapestry/test/lab/rpc"
	"tapestry.dev/tapestry/test/lab/shim"
	"tapestry.dev/tapestry/test/lab/underlay"
)

// How long an agent may take for an ADD or DEL, and how long to wait before a DEL is repeated.
const (
	attachTime  = 10 * time.Second
	detachRetry = 200 * time.Millisecond
)

// files has the contents of files in /etc.
type files struct {
	hostname, resolv, hosts string
}

// place writes the files of a place into dir.
func (l *lab) place(ns *tap.Namespace, dir string, f files) (process.Place, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return process.Place{}, err
	}
	p := process.Place{Namespace: ns, Hostname: f.hostname, Mounts: map[string]string{}}
	for target, content := range map[string]string{"/etc/resolv.conf": f.resolv, "/etc/hosts": f.hosts} {
		file := filepath.Join(dir, filepath.Base(target))
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			return process.Place{}, err
		}
		p.Mounts[target] = file
	}
	return p, nil
}

// sandbox is the sandbox of a running pod.
type sandbox struct {
	lab   *lab
	pod   *kubelet.Pod
	node  *node
	place process.Place
	log   *os.File
}

var _ kubelet.Sandbox = (*sandbox)(nil)

// newSandbox makes a pod's namespace and asks the node's agent to attach its TAP.
func (l *lab) newSandbox(ctx context.Context, pod *kubelet.Pod) (_ kubelet.Sandbox, err error) {
	n := l.node(pod.Node)
	if n == nil {
		return nil, fmt.Errorf("node %s is not up", pod.Node)
	}
	s := &sandbox{lab: l, pod: pod, node: n}
	ns := n.ns
	if !pod.HostNetwork {
		if ns, err = underlay.NewNamespace(); err != nil {
			return nil, err
		}
	}
	defer func() {
		if err != nil {
			s.release(ns)
		}
	}()
	dir := rpc.PodDir(l.cfg.Dir, pod.Namespace, pod.Name)
	if s.place, err = l.place(ns, dir, files{pod.Hostname, pod.ResolvConf, pod.Hosts}); err != nil {
		return nil, err
	}
	s.log, err = os.OpenFile(rpc.PodLog(l.cfg.Dir, pod.Namespace, pod.Name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	if !pod.HostNetwork {
		if err := s.attach(ctx, ns); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// attach makes eth0 and hands it to the agent. The agent hands a duplicate to the keeper before it answers. The
// descriptor here is not needed after that.
func (s *sandbox) attach(ctx context.Context, ns *tap.Namespace) error {
	mac := podMAC(s.pod.UID)
	mtu := s.lab.podMTU()
	f, err := tap.Create(ns, tap.PodConfig(s.pod.Addrs, mac, mtu))
	if err != nil {
		return err
	}
	defer f.Close()
	ctx, cancel := context.WithTimeout(ctx, attachTime)
	defer cancel()
	pod := s.cniPod()
	pod.Addrs, pod.MAC, pod.MTU = s.pod.Addrs, net.HardwareAddr(mac[:]).String(), mtu
	if err := s.agent().Add(ctx, pod, f); err != nil {
		// The agent may have attached the TAP while its answer got lost. The next attempt uses another TAP.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = s.agent().Del(ctx, pod)
		return err
	}
	return nil
}

func (s *sandbox) agent() *cni.Client { return &cni.Client{Path: s.node.socket("agent")} }

func (s *sandbox) cniPod() cni.Pod {
	return cni.Pod{Namespace: s.pod.Namespace, Name: s.pod.Name, UID: s.pod.UID, ContainerID: s.pod.UID}
}

// podMAC derives a locally administered unicast address from a UID.
func podMAC(uid string) packet.MAC {
	h := sha256.Sum256([]byte(uid))
	return packet.MAC{h[0]&^0x01 | 0x02, h[1], h[2], h[3], h[4], h[5]}
}

// Start implements kubelet.Sandbox.
func (s *sandbox) Start(c kubelet.Command) (kubelet.Process, error) {
	p, err := process.Start(s.lab.cfg.Exe, s.place, shim.Spec{Argv: c.Argv, Env: c.Env, Dir: c.Dir}, process.Stdio{Out: s.log, Err: s.log})
	if err != nil {
		return nil, err
	}
	p.Whole = true
	return p, nil
}

// Dial implements kubelet.Sandbox.
func (s *sandbox) Dial(ctx context.Context, network, address string) (c net.Conn, err error) {
	// The address is numeric, so Dial resolves nothing and makes the socket on this thread.
	err = s.place.Namespace.Do(func() error {
		c, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	return c, err
}

// Close implements kubelet.Sandbox. It waits for the agent, since an agent that is down would later find the pod again.
func (s *sandbox) Close() error {
	if s.pod.HostNetwork {
		return s.release(s.place.Namespace)
	}
	err := process.KillInside(s.place.Namespace)
	for s.node.agent.Context().Err() == nil {
		ctx, cancel := context.WithTimeout(s.node.agent.Context(), attachTime)
		delErr := s.agent().Del(ctx, s.cniPod())
		cancel()
		if delErr == nil {
			break
		}
		select {
		case <-s.node.agent.Context().Done(): // the node is removed together with its agent
		case <-time.After(detachRetry):
		}
	}
	if rerr := s.release(s.place.Namespace); err == nil {
		err = rerr
	}
	return err
}

// release closes what the sandbox holds.
func (s *sandbox) release(ns *tap.Namespace) error {
	if s.log != nil {
		s.log.Close()
	}
	if s.pod.HostNetwork {
		return nil
	}
	return ns.Close()
}
