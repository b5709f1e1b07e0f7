package heal

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/pods"
)

// Kind is the kind of an Ailment. The kinds are in the order in which they are told.
type Kind string

// The kinds, worst first: without a host TAP no probe reaches any pod, while the others concern one thing each.
const (
	NoHostTAP Kind = "no-host-tap" // processes of the node do not reach pods and Services
	NoIngress Kind = "no-ingress"  // an address of Ingress is not listened on
	NoTAP     Kind = "no-tap"      // nobody has the TAP of a pod that runs
	OldRange  Kind = "old-range"   // a pod's address is from before the node's ranges changed
)

var kinds = []Kind{NoHostTAP, NoIngress, NoTAP, OldRange}

// Ailment is something that this agent cannot put right by itself.
type Ailment struct {
	Kind Kind
	// Broken is the pod of NoTAP and OldRange.
	Broken pods.Broken
	// Step is set when the agent's init steps, run again, put it right.
	Step bool
	// Message says what is wrong, Remedy what to do.
	Message, Remedy string
}

// Door is an address of Ingress that is not listened on, and why. Had is set when the init steps of the agent's pod had
// left a socket for it, or the agent could listen itself.
type Door struct {
	Addr string
	Err  error
	Had  bool
}

// Facts are what Diagnose goes by.
type Facts struct {
	// OwnPod is the agent's own pod; zero when it is in none, or not told.
	OwnPod kube.Ref
	// HostTAP is why there is no host TAP although there should be one, or nil.
	HostTAP error
	// Stepped is set when an init step makes the host TAP and the listening sockets of privileged ports.
	Stepped bool
	Doors   []Door
	Pods    []pods.Broken
}

// Diagnose returns what ails the node, worst first.
func Diagnose(f *Facts) []Ailment {
	var list []Ailment
	if f.HostTAP != nil {
		list = append(list, Ailment{
			Kind: NoHostTAP, Step: f.Stepped, Remedy: again(f),
			Message: "processes of this node, kubelet's probes among them, do not reach pods and Services: " + f.HostTAP.Error(),
		})
	}
	for _, d := range f.Doors {
		a := Ailment{
			Kind: NoIngress, Message: fmt.Sprintf("Ingress is not served at %s of this node: %v", d.Addr, d.Err),
			Remedy: "free the address, or choose another with --ingress-http, --ingress-https",
		}
		if f.Stepped && d.Had && errors.Is(d.Err, unix.EACCES) { // the socket that the step left is gone
			a.Step, a.Remedy = true, again(f)
		}
		list = append(list, a)
	}
	for _, b := range f.Pods {
		a := Ailment{Kind: NoTAP, Broken: b, Message: fmt.Sprintf(
			"it has no network: nobody has the TAP with its %s any more, as when the keeper and the agent of its node end at once", addresses(b.Addrs))}
		if b.OldRange {
			a.Kind = OldRange
			a.Message = fmt.Sprintf("other nodes do not reach its %s, from before the ranges of its node changed", addresses(b.Addrs))
		}
		a.Remedy = fmt.Sprintf("delete it, and its controller makes another: kubectl -n %s delete pod %s", b.Pod.Namespace, b.Pod.Name)
		if !b.Managed {
			a.Remedy = "make it anew; it has no controller that does"
		}
		list = append(list, a)
	}
	slices.SortStableFunc(list, func(a, b Ailment) int {
		return cmp.Or(cmp.Compare(slices.Index(kinds, a.Kind), slices.Index(kinds, b.Kind)), a.Broken.Pod.Compare(b.Broken.Pod))
	})
	return list
}

func addresses(list []netip.Addr) string {
	texts := make([]string, len(list))
	for i, a := range list {
		texts[i] = a.String()
	}
	if len(list) == 1 {
		return "address " + texts[0]
	}
	return "addresses " + strings.Join(texts, ", ")
}

// again says how the init steps are run again.
func again(f *Facts) string {
	switch {
	case !f.Stepped:
		return "delete the interface, or run 'tapestry host-tap' on this node"
	case f.OwnPod.Name != "":
		return fmt.Sprintf("delete the agent's pod, so that its init steps run again: kubectl -n %s delete pod %s", f.OwnPod.Namespace, f.OwnPod.Name)
	}
	return "run 'tapestry host-tap' on this node again, as before the agent's first start"
}

// object returns what is ill.
func (a *Ailment) object(node string) kube.Ref {
	if a.Broken.Pod.Name != "" {
		return a.Broken.Pod
	}
	return kube.Ref{Kind: "Node", Name: node}
}

// problem returns an Ailment as a problem of its object. tell is not set for OldRange, of which the node itself tells.
func (a *Ailment) problem(node string) (p kube.Problem, tell bool) {
	return kube.Problem{Severity: kube.Error, Object: a.object(node), Message: a.Message + "; " + a.Remedy}, a.Kind != OldRange
}

// mostNamed is how many pods a sentence names at most.
const mostNamed = 5

// names returns "2 pods without a TAP (a/x, a/y)".
func names(list []Ailment, what string) string {
	pods := "pods"
	if len(list) == 1 {
		pods = "pod"
	}
	var texts []string
	for _, a := range list[:min(len(list), mostNamed)] {
		texts = append(texts, a.Broken.Pod.Namespace+"/"+a.Broken.Pod.Name)
	}
	if more := len(list) - mostNamed; more > 0 {
		texts = append(texts, fmt.Sprintf("and %d more", more))
	}
	return fmt.Sprintf("%d %s %s (%s)", len(list), pods, what, strings.Join(texts, ", "))
}

// HostError returns what init steps have made and is missing, or nil.
func HostError(list []Ailment) error {
	for _, a := range list {
		if a.Step {
			return fmt.Errorf("%s; %s", a.Message, a.Remedy)
		}
	}
	return nil
}

// whole reports whether all is there that init steps make. A privileged port that was never listened on is not: if the
// node counted as whole without its socket, the socket would count as lost from then on.
func whole(f *Facts, list []Ailment) bool {
	return HostError(list) == nil && !slices.ContainsFunc(f.Doors, func(d Door) bool { return errors.Is(d.Err, unix.EACCES) })
}

// PodsError names the pods that have no network, or nil.
func PodsError(list []Ailment) error {
	of := map[Kind][]Ailment{}
	for _, a := range list {
		of[a.Kind] = append(of[a.Kind], a)
	}
	var texts []string
	if l := of[NoTAP]; len(l) > 0 {
		texts = append(texts, names(l, "without a TAP"))
	}
	if l := of[OldRange]; len(l) > 0 {
		texts = append(texts, names(l, "with addresses from before the node's ranges changed"))
	}
	if len(texts) == 0 {
		return nil
	}
	return errors.New(strings.Join(texts, ", ") + ": delete them, so that they are made anew")
}
