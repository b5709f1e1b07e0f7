package labs

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"tapestry.dev/tapestry/bench"
	"tapestry.dev/tapestry/bench/process"
	"tapestry.dev/tapestry/netstack/keeper"
	"tapestry.dev/tapestry/netstack/tap"
	"tapestry.dev/tapestry/test/lab"
)

// Spec says what is in a lab. Its first node has the pods client and near, its second node, if there is one, the pod
// far. The Services near and far have load.Serve's ports, and node ports; see NearPort.
type Spec struct {
	Name     string // tells the labs of a run apart
	Nodes    int    // 1 or 2
	Services int    // others, with endpoints, that only fill the tables
	Ingress  bool   // to near, for bench.HTTPHost
	// Balancers gives near and far addresses of load balancers, which outside routes to the first node. It takes 2
	// Nodes.
	Balancers bool
}

// The node ports of near and far, for TCP and UDP, and that of near's web server.
const (
	NearPort     = 30201
	FarPort      = 30202
	NearHTTPPort = 30280
)

// readyTime is how long a lab may take to come up. Ten thousand Services take a few seconds.
const readyTime = 60 * time.Second

// Lab is a lab that is up.
type Lab struct {
	client *lab.Client
	spawn  process.Spawn
	dir    string
	keep   *keeper.Keeper
	closed func() error
	addrs  map[string]netip.Addr // by End.Host

	// What paths share: a namespace for each place, and the servers running there.
	places  map[lab.Target]*tap.Namespace
	servers map[served]*process.Process
}

// Up brings a lab up and waits until it is ready. spawn makes the commands that run inside of the lab; nil is
// process.Self.
func Up(ctx context.Context, s Spec, spawn process.Spawn) (l *Lab, err error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	if spawn == nil {
		spawn = process.Self
	}
	l = &Lab{spawn: spawn, places: map[lab.Target]*tap.Namespace{}, servers: map[served]*process.Process{}}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("lab %s: %w", s.Name, err), l.Down(context.WithoutCancel(ctx)))
			l = nil
		}
	}()
	if l.dir, err = os.MkdirTemp("", "tapestry-bench-"); err != nil {
		return l, err
	}
	files := filepath.Join(l.dir, "objects")
	if err := os.Mkdir(files, 0o700); err != nil {
		return l, err
	}
	if err := s.write(files); err != nil {
		return l, err
	}
	// The name does not contain the process's ID: a run has a PID namespace of its own, so another run may have the
	// same ID.
	name := fmt.Sprintf("bench-%s-%06d", s.Name, rand.IntN(1e6))
	if l.client, err = lab.Up(ctx, lab.Options{Name: name, Files: []string{files}, LoadBalancers: s.ranges()}); err != nil {
		return l, err
	}
	if err := l.client.Wait(ctx, readyTime); err != nil {
		return l, err
	}
	if err := l.learn(ctx); err != nil {
		return l, err
	}
	if err := l.serveNamespaces(ctx); err != nil || !s.Balancers {
		return l, err
	}
	return l, l.routeBalancers(ctx)
}

// Down takes the lab down, and all paths through it.
func (l *Lab) Down(ctx context.Context) error {
	var errs []error
	for _, p := range l.servers {
		errs = append(errs, p.Close())
	}
	for _, ns := range l.places {
		errs = append(errs, ns.Close())
	}
	if l.closed != nil {
		errs = append(errs, l.closed())
	}
	if l.client != nil {
		errs = append(errs, l.client.Down(ctx))
	}
	if l.dir != "" {
		errs = append(errs, os.RemoveAll(l.dir))
	}
	return errors.Join(errs...)
}

// learn asks the lab for its addresses.
func (l *Lab) learn(ctx context.Context) error {
	st, err := l.client.Status(ctx)
	if err != nil {
		return err
	}
	l.addrs = map[string]netip.Addr{"outside": st.Outside[0]}
	for _, n := range st.Nodes {
		l.addrs["node/"+n.Name] = n.Addrs[0]
	}
	for _, p := range st.Pods {
		l.addrs["pod/"+p.Name] = p.Addrs[0]
	}
	for _, s := range st.Services {
		if l.addrs["service/"+s.Name], err = netip.ParseAddr(s.ClusterIPs[0]); err != nil {
			return fmt.Errorf("service %s: %w", s.Name, err)
		}
	}
	return nil
}

// serveNamespaces opens the socket over which processes inside the lab send the descriptors of their namespaces.
func (l *Lab) serveNamespaces(ctx context.Context) error {
	l.keep = keeper.New()
	ln, err := keeper.Listen(l.socket())
	if err != nil {
		return errors.Join(err, l.keep.Close())
	}
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = l.keep.Serve(serving, ln, keeper.Options{}) // ends with stop
	}()
	l.closed = func() error { stop(); <-done; return l.keep.Close() }
	return nil
}

func (l *Lab) socket() string { return filepath.Join(l.dir, "namespaces.sock") }

// namespace returns a place's namespace. A process inside sends its descriptor.
func (l *Lab) namespace(ctx context.Context, where lab.Target) (*tap.Namespace, error) {
	if ns, ok := l.places[where]; ok {
		return ns, nil
	}
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	key := fmt.Sprint(len(l.places))
	_, stderr, code, err := l.client.Output(ctx, where, exe, "probe", "give-namespace", "--keeper", l.socket(), "--key", key)
	if err != nil || code != 0 {
		return nil, errors.Join(err, fmt.Errorf("namespace of %v: exit status %d: %s", where, code, strings.TrimSpace(stderr)))
	}
	item, err := l.keep.Get(key)
	if err != nil {
		return nil, err
	}
	ns, err := tap.NamespaceFromFile(item.File)
	if err != nil {
		return nil, errors.Join(err, item.File.Close())
	}
	l.places[where] = ns
	return ns, nil
}

// serve makes sure that the server for a service runs in a place.
func (l *Lab) serve(ctx context.Context, where lab.Target, s bench.Service) error {
	args := bench.ServeArgs(s)
	key := served{where, args[0]}
	if _, ok := l.servers[key]; ok {
		return nil
	}
	ns, err := l.namespace(ctx, where)
	if err != nil {
		return err
	}
	server, _, err := process.Start(ns, l.spawn(args...))
	if err != nil {
		return err
	}
	l.servers[key] = server
	return nil
}

// served identifies a server. One command serves several services.
type served struct {
	where   lab.Target
	command string
}
