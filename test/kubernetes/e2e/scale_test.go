package e2e

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"tapestry.dev/tapestry/test/kubernetes/lab"
)

var manyServices = flag.Int("services", 500, "`number` of Services of TestManyServices, with ten endpoints each; up to 5000")

const (
	mostMemory = 150e6            // of an agent, in bytes, with 5,000 Services and 50,000 endpoints
	longStart  = 10 * time.Second // five times what an idle machine needs
)

// TestManyServices measures an agent that knows many Services and endpoints. It measures the agent's memory, and the
// time from the start of its process until a new flow through a Service gets its answer, from a pod of the same node
// and from a pod of another node.
func TestManyServices(t *testing.T) {
	if *manyServices < 1 || *manyServices > 5000 {
		t.Fatalf("-services is %d: expected 1 to 5000", *manyServices)
	}
	ns := namespace(t)
	n := state.Nodes[len(state.Nodes)-1]
	pods := start(t, netexec(ns, "client", n.Name), netexec(ns, "here", n.Name), netexec(ns, "there", state.Nodes[0].Name))
	fast := rest.CopyConfig(config)
	fast.QPS, fast.ContentType = -1, "application/vnd.kubernetes.protobuf"
	api, err := kubernetes.NewForConfig(fast)
	if err != nil {
		t.Fatal(err)
	}
	made := services{api, ns}
	began := time.Now()
	t.Cleanup(func() {
		if err := parallel(*manyServices, func(i int) error { return made.remove(context.Background(), number(i)) }); err != nil {
			t.Error(err)
		}
		// The controllers have seen each Service come and go, and need time to catch up. Later tests need them.
		caughtUp(t, ns)
	})
	err = parallel(*manyServices, func(i int) error {
		var addrs []string
		for j := i * 10; j < i*10+10; j++ {
			addrs = append(addrs, fmt.Sprintf("10.244.%d.%d", 10+j/250, 1+j%250)) // nobody has these addresses
		}
		_, err := made.add(t.Context(), number(i), addrs...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d Services were made in %v", *manyServices, time.Since(began).Round(time.Millisecond))
	// These Services come after all others: an agent that knows them knows all.
	inside := processIn(t, pods[0])
	var askers []*asker
	for _, p := range pods[1:] {
		addr, err := made.add(t.Context(), "target-"+p.Name, p.Status.PodIP)
		if err != nil {
			t.Fatal(err)
		}
		a := ask(inside, net.JoinHostPort(addr, "80"), p.Name)
		t.Cleanup(a.stop)
		askers = append(askers, a)
		eventually(t, soon, "the Service of "+p.Name, func() error { _, err := a.since(began); return err })
	}
	for _, n := range state.Nodes {
		eventually(t, soon, "an agent that knows all Services", func() error { return knows(n, *manyServices+len(askers)) })
	}
	memory := func() {
		t.Helper()
		eventually(t, soon, "little memory of the agent", func() error {
			if now, _ := tapestryOn(t, n)["agent"].memory(t); now > mostMemory {
				return fmt.Errorf("VmRSS is %s, want %s at most", megabytes(now), megabytes(mostMemory))
			}
			return nil
		})
		figure(t, "with %d Services and %d endpoints: %s", *manyServices, *manyServices*10, memories(t, n))
	}
	memory()
	for range 3 {
		replace(t, agents, n)
		started := tapestryOn(t, n)["agent"].began(t)
		var took []time.Duration
		for i, a := range askers {
			eventually(t, soon, "an answer of "+pods[1+i].Name, func() error {
				first, err := a.since(started)
				if err == nil {
					took = append(took, first.Sub(started))
				}
				return err
			})
		}
		figure(t, "with %d Services and %d endpoints, from the start of the agent's process to the first answer: %v from the same node, %v from the other one",
			*manyServices, *manyServices*10, took[0].Round(time.Millisecond), took[1].Round(time.Millisecond))
		if slowest := slices.Max(took); slowest > longStart {
			t.Errorf("%v from the agent's start to the first answer, want %v at most", slowest, longStart)
		}
	}
	for _, a := range askers {
		a.stop()
		if len(a.wrong) > 0 {
			t.Errorf("%s answered what was for %s", a.wrong[0], a.want)
		}
	}
	eventually(t, soon, "an agent that knows all Services", func() error { return knows(n, *manyServices+len(askers)) })
	memory()
}

// caughtUp waits until the controllers have handled everything before. They handle Services in turn.
func caughtUp(t *testing.T, ns string) {
	t.Helper()
	ctx := context.Background()
	_, err := client.CoreV1().Services(ns).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "last"},
		Spec:       corev1.ServiceSpec{Selector: map[string]string{"app": "netexec"}, Ports: []corev1.ServicePort{{Port: 80}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Error(err)
		return
	}
	began := time.Now()
	eventually(t, 10*time.Minute, "controllers that have caught up", func() error {
		// The older of the two controllers is the slower one.
		_, err := client.CoreV1().Endpoints(ns).Get(ctx, "last", metav1.GetOptions{})
		return err
	})
	t.Logf("the controllers took %v to catch up", time.Since(began).Round(time.Millisecond))
}

func number(i int) string { return fmt.Sprintf("many-%04d", i) }

// parallel calls do for 0 to n-1, many at a time, and returns the first errors.
func parallel(n int, do func(i int) error) error {
	const workers = 32
	var next atomic.Int64
	var wait sync.WaitGroup
	errs := make([]error, workers)
	for w := range errs {
		wait.Add(1)
		go func() {
			defer wait.Done()
			for i := int(next.Add(1)) - 1; i < n && errs[w] == nil; i = int(next.Add(1)) - 1 {
				errs[w] = do(i)
			}
		}()
	}
	wait.Wait()
	return errors.Join(errs...)
}

// services makes Services without a selector in a namespace.
type services struct {
	api kubernetes.Interface
	ns  string
}

// add makes a Service with UDP port 80 and returns its address. Its endpoints are netexec's port 8081 of the pods at
// addrs.
func (s services) add(ctx context.Context, name string, addrs ...string) (string, error) {
	made, err := s.api.CoreV1().Services(s.ns).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": name, "team": "many"}},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "port", Protocol: corev1.ProtocolUDP, Port: 80, TargetPort: intstr.FromInt32(8081)}}},
	}, metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	port, protocol, port8081, yes := "port", corev1.ProtocolUDP, int32(8081), true
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: name, discoveryv1.LabelManagedBy: "tapestry-e2e"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &port, Protocol: &protocol, Port: &port8081}},
	}
	for _, a := range addrs {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}, Conditions: discoveryv1.EndpointConditions{Ready: &yes}})
	}
	_, err = s.api.DiscoveryV1().EndpointSlices(s.ns).Create(ctx, slice, metav1.CreateOptions{})
	return made.Spec.ClusterIP, err
}

// remove removes what add has made, even if add failed in between.
func (s services) remove(ctx context.Context, name string) error {
	err := s.api.CoreV1().Services(s.ns).Delete(ctx, name, metav1.DeleteOptions{})
	err2 := s.api.DiscoveryV1().EndpointSlices(s.ns).Delete(ctx, name, metav1.DeleteOptions{})
	// The slice of a removed Service may already be gone.
	for _, e := range []*error{&err, &err2} {
		if apierrors.IsNotFound(*e) {
			*e = nil
		}
	}
	return errors.Join(err, err2)
}

// knows returns an error unless the node's agent knows so many Services.
func knows(n lab.Node, services int) error {
	out, err := onNode(context.Background(), n.Name, curl("http://127.0.0.1:10249/metrics")...)
	if err != nil {
		return err
	}
	for _, line := range strings.Split(out, "\n") {
		value, ok := strings.CutPrefix(line, "tapestry_services ")
		if !ok {
			continue
		}
		if known, err := strconv.ParseFloat(value, 64); err != nil || int(known) < services {
			return fmt.Errorf("%s knows %s (%v), want %d", n.Name, value, err, services)
		}
		return nil
	}
	return fmt.Errorf("%s does not say how many Services it knows", n.Name)
}

// processIn returns a process of the pod's first container.
func processIn(t *testing.T, p *corev1.Pod) int {
	t.Helper()
	_, container, _ := strings.Cut(p.Status.ContainerStatuses[0].ContainerID, "://")
	for pid, what := range processes(t) {
		if container != "" && strings.Contains(what.cgroup, container) {
			return pid
		}
	}
	t.Fatalf("pod %s has no process in a cgroup with %s", p.Name, container)
	return 0
}

// An asker asks a netexec for its name over UDP from the network of a process, each time as a new flow.
type asker struct {
	want string
	stop func() // returns when the asker has ended; may be called again

	mu      sync.Mutex
	answers []time.Time
	err     error // of the last attempt
	wrong   []string
}

func ask(pid int, addr, want string) *asker {
	a := &asker{want: want}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	a.stop = func() { cancel(); <-done }
	go func() {
		defer close(done)
		err := inNetwork(pid, func() error {
			tick := time.NewTicker(20 * time.Millisecond)
			defer tick.Stop()
			for ctx.Err() == nil {
				a.note(once(addr))
				<-tick.C
			}
			return nil
		})
		if err != nil {
			a.note("", err)
		}
	}()
	return a
}

// inNetwork calls do in the network of a process.
func inNetwork(pid int, do func() error) error {
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return err
	}
	defer f.Close()
	done := make(chan error)
	go func() {
		// The thread is never unlocked: it stays in the other network, and ends with its goroutine.
		runtime.LockOSThread()
		err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET)
		if err == nil {
			err = do()
		}
		done <- err
	}()
	return <-done
}

func once(addr string) (string, error) {
	c, err := net.Dial("udp4", addr)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
		return "", err
	}
	if _, err := c.Write([]byte("hostname\n")); err != nil {
		return "", err
	}
	b := make([]byte, 256)
	n, err := c.Read(b)
	return strings.TrimSpace(string(b[:n])), err
}

func (a *asker) note(answer string, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch a.err = err; {
	case err != nil:
	case answer != a.want:
		a.wrong = append(a.wrong, strconv.Quote(answer))
	default:
		a.answers = append(a.answers, time.Now())
	}
}

// since returns the time of the first correct answer after when.
func (a *asker) since(when time.Time) (time.Time, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	i := slices.IndexFunc(a.answers, func(t time.Time) bool { return t.After(when) })
	if i < 0 {
		return time.Time{}, fmt.Errorf("no answer; the last attempt: %v", a.err)
	}
	return a.answers[i], nil
}
