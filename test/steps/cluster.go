package steps

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"tapestry.dev/tapestry/test/lab"
	"tapestry.dev/tapestry/test/probe"
)

// pair is an IPv4 and an IPv6 address of the same thing.
type pair struct{ v4, v6 netip.Addr }

func (p *pair) add(a netip.Addr) {
	if a.Is4() {
		p.v4 = a
	} else {
		p.v6 = a
	}
}

// of returns the address of a family.
func (p pair) of(v6 bool) netip.Addr {
	if v6 {
		return p.v6
	}
	return p.v4
}

func at(a netip.Addr, port uint16) string { return netip.AddrPortFrom(a, port).String() }

// families runs f for IPv4 and IPv6.
func families(f func(v6 bool) error) error {
	for _, v6 := range []bool{false, true} {
		if err := f(v6); err != nil {
			name := "IPv4"
			if v6 {
				name = "IPv6"
			}
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// learn asks the lab for its addresses.
func (c *Cluster) learn(ctx context.Context) error {
	st, err := c.Status(ctx)
	if err != nil {
		return err
	}
	ips := map[string]pair{}
	add := func(key string, addrs ...netip.Addr) {
		p := ips[key]
		for _, a := range addrs {
			p.add(a)
		}
		ips[key] = p
	}
	for _, n := range st.Nodes {
		add(n.Name, n.Addrs...)
	}
	for _, p := range st.Pods {
		if p.Namespace == "default" {
			add(p.Name, p.Addrs...)
		}
	}
	for _, s := range st.Services {
		for _, ip := range s.ClusterIPs {
			if a, err := netip.ParseAddr(ip); err == nil && s.Namespace == "default" {
				add("svc/"+s.Name, a)
			}
		}
	}
	add("outside", st.Outside...)
	// Addresses behind the outside. No node has a route of its own to them.
	add("beyond", netip.MustParseAddr("203.0.113.10"), netip.MustParseAddr("2001:db8:113::10"))
	c.ips = ips
	return nil
}

// probe runs this program's probe at a target and decodes the last line that it prints.
func (c *Cluster) probe(ctx context.Context, where lab.Target, out any, args ...string) error {
	stdout, stderr, code, err := c.Output(ctx, where, append([]string{c.exe, "probe"}, args...)...)
	if err != nil {
		return err
	}
	if code != 0 {
		return fmt.Errorf("probe %s: exit status %d: %s", strings.Join(args, " "), code, strings.TrimSpace(stderr))
	}
	lines := strings.Split(strings.TrimSpace(stdout), "\n")
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), out); err != nil {
		return fmt.Errorf("probe %s: %w in %q", strings.Join(args, " "), err, stdout)
	}
	return nil
}

// ask asks a server once.
func (c *Cluster) ask(ctx context.Context, where lab.Target, network, addr string, flags ...string) (probe.Answer, error) {
	var a probe.Answer
	err := c.probe(ctx, where, &a, append(append([]string{"ask"}, flags...), network, addr)...)
	if err == nil && a.Error != "" {
		err = fmt.Errorf("%s %s: %s after %.0f ms", network, addr, a.Error, a.Millis)
	}
	return a, err
}

// askMany asks a server several times, each time on a new connection, and counts the answers by pod.
func (c *Cluster) askMany(ctx context.Context, where lab.Target, network, addr string, times int) (map[string]int, error) {
	stdout, stderr, code, err := c.Output(ctx, where, c.exe, "probe", "ask", "--times", fmt.Sprint(times), network, addr)
	if err != nil || code != 0 {
		return nil, errors.Join(err, fmt.Errorf("exit status %d: %s", code, stderr))
	}
	count := map[string]int{}
	for s := bufio.NewScanner(strings.NewReader(stdout)); s.Scan(); {
		var a probe.Answer
		if err := json.Unmarshal(s.Bytes(), &a); err != nil {
			return nil, err
		}
		if a.Error != "" {
			return nil, fmt.Errorf("%s %s: %s", network, addr, a.Error)
		}
		count[a.Pod]++
	}
	return count, nil
}

// seen is what a server should say: its name ("" for any), and the address of the client.
type seen struct {
	pod    string
	client netip.Addr
}

// sees asks a server, and checks which pod answers and which address it sees.
func (c *Cluster) sees(ctx context.Context, where lab.Target, network, addr string, want seen) error {
	a, err := c.ask(ctx, where, network, addr)
	if err != nil {
		return err
	}
	if want.pod != "" && a.Pod != want.pod {
		return fmt.Errorf("%s %s was answered by %s, want %s", network, addr, a.Pod, want.pod)
	}
	host, _, err := net.SplitHostPort(a.Client)
	if err != nil {
		return err
	}
	if host != want.client.String() {
		return fmt.Errorf("%s %s: pod %s sees the client as %s, want %s", network, addr, a.Pod, a.Client, want.client)
	}
	return nil
}

// background is a probe that runs during a step.
type background struct {
	started chan struct{}
	done    chan struct{} // closed when the probe has ended and its output was read
	last    string
	err     error
	input   *os.File // the probe's input, which ends when this is closed; nil for none
}

// start starts a probe in the background, and returns when it has printed "started".
func (c *Cluster) start(ctx context.Context, where lab.Target, args ...string) (*background, error) {
	return c.startWith(ctx, nil, where, args...)
}

// hold starts a probe that holds a connection until letGo is called, or ctx is done.
func (c *Cluster) hold(ctx context.Context, where lab.Target, args ...string) (*background, error) {
	return c.startHeld(ctx, where, append([]string{"hold"}, args...)...)
}

// watch starts a probe that makes new connections until letGo is called, or ctx is done. It returns when all pods have
// answered some.
func (c *Cluster) watch(ctx context.Context, where lab.Target, network, addr string, pods ...string) (*background, error) {
	args := []string{"watch"}
	for _, p := range pods {
		args = append(args, "--sees", p)
	}
	return c.startHeld(ctx, where, append(args, network, addr)...)
}

// startHeld starts a probe that lasts until its input ends.
func (c *Cluster) startHeld(ctx context.Context, where lab.Target, args ...string) (*background, error) {
	in, input, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	b, err := c.startWith(ctx, in, where, args...)
	if err != nil {
		_ = input.Close()
		return nil, err
	}
	b.input = input
	return b, nil
}

// mark tells a probe that watches that what it is to watch has begun.
func (b *background) mark() error {
	_, err := b.input.WriteString("\n")
	return err
}

// letGo tells a probe that holds a connection, or watches, to end.
func (b *background) letGo() { _ = b.input.Close() }

// startWith is start with an input, which it closes; nil for none.
func (c *Cluster) startWith(ctx context.Context, in *os.File, where lab.Target, args ...string) (*background, error) {
	r, w, err := os.Pipe()
	if err != nil {
		_ = in.Close()
		return nil, err
	}
	b := &background{started: make(chan struct{}), done: make(chan struct{})}
	go func() {
		code, err := c.Exec(ctx, where, lab.Command{Argv: append([]string{c.exe, "probe"}, args...)}, lab.Stdio{In: in, Out: w, Err: w})
		_, _ = in.Close(), w.Close()
		if err == nil && code != 0 {
			err = fmt.Errorf("probe %s: exit status %d", strings.Join(args, " "), code)
		}
		b.err = err
	}()
	go func() {
		defer close(b.done)
		defer r.Close()
		s := bufio.NewScanner(r)
		for s.Scan() {
			if b.last = s.Text(); b.last == "started" {
				close(b.started)
			}
		}
	}()
	select {
	case <-b.started:
		return b, nil
	case <-b.done:
		return nil, fmt.Errorf("probe %s did not start: %s", strings.Join(args, " "), b.last)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// wait waits until the probe ends, and decodes the last line that it printed.
func (b *background) wait(ctx context.Context, out any) error {
	select {
	case <-b.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := json.Unmarshal([]byte(b.last), out); err != nil {
		return fmt.Errorf("%s (%w)", b.last, errors.Join(err, b.err))
	}
	return nil
}

// stop ends a probe that would otherwise go on.
func (b *background) stop(cancel context.CancelFunc) {
	cancel()
	<-b.done
}

// edit changes the text of the lab's file and waits until the lab has applied it.
func (c *Cluster) edit(ctx context.Context, change func(string) string) error {
	before, err := c.Status(ctx)
	if err != nil {
		return err
	}
	b, err := os.ReadFile(c.file)
	if err != nil {
		return err
	}
	if err := os.WriteFile(c.file, []byte(change(string(b))), 0o600); err != nil {
		return err
	}
	if err := c.WaitFor(ctx, func(s *lab.Status) bool { return s.Applied > before.Applied || s.ApplyError != "" }); err != nil {
		return err
	}
	after, err := c.Status(ctx)
	if err != nil {
		return err
	}
	if after.ApplyError != "" {
		return errors.New(after.ApplyError)
	}
	return nil
}
