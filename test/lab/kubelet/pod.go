// Package kubelet runs the pods of a lab: it makes a pod's sandbox, starts its containers' commands in there, probes
// them, restarts them and stops them, and tells about every change at once. It knows neither Kubernetes types nor
// namespaces: a Sandbox is given to it.
package kubelet

import (
	"net/netip"
	"time"
)

// Pod is what is to run, completely resolved.
type Pod struct {
	Namespace, Name string
	// UID is another one for every incarnation of the name.
	UID   string
	Node  string
	Addrs []netip.Addr
	// HostNetwork pods live in their node's namespace.
	HostNetwork bool
	Hostname    string
	// ResolvConf and Hosts are the contents of the two files in /etc.
	ResolvConf, Hosts string
	// Init run one after the other to their end before the Containers are started together.
	Init, Containers []Container
	Restart          RestartPolicy
	// Grace is how long a container may take to end after SIGTERM.
	Grace time.Duration
	// Problem keeps the pod from being started, and says why; "" when there is none.
	Problem string
}

// Key names a pod over its incarnations: "namespace/name".
func (p *Pod) Key() string { return p.Namespace + "/" + p.Name }

// RestartPolicy says when a container that ended is started again.
type RestartPolicy string

// The restart policies, as in Kubernetes.
const (
	Always    RestartPolicy = "Always"
	OnFailure RestartPolicy = "OnFailure"
	Never     RestartPolicy = "Never"
)

// Container is one command.
type Container struct {
	Name string
	Argv []string
	Env  []string
	Dir  string
	// Readiness and Liveness may be nil: ready as soon as it runs, alive as long as it runs.
	Readiness, Liveness *Probe
}

// Probe is how to find out whether a container is well. Exactly one of HTTP, TCP and Exec is set.
type Probe struct {
	HTTP *HTTPProbe
	TCP  netip.AddrPort
	Exec []string

	InitialDelay, Period, Timeout time.Duration
	// Success and Failure are how many equal results in a row change the state.
	Success, Failure int
}

// HTTPProbe is a GET that a status of 200 to 399 answers well.
type HTTPProbe struct {
	URL    string
	Header map[string][]string
}

// Phase is the phase of a pod, as in Kubernetes.
type Phase string

// The phases.
const (
	Pending   Phase = "Pending"
	Running   Phase = "Running"
	Succeeded Phase = "Succeeded"
	Failed    Phase = "Failed"
)

// Status is how a pod is. A Status that was handed out does not change.
type Status struct {
	Phase Phase
	// Initialized: every init container has ended well.
	Initialized bool
	// Ready: every container runs and its readiness probe is content.
	Ready bool
	// Terminating: the pod was told to stop.
	Terminating bool
	// Gone: nothing is left of it.
	Gone bool
	// Started and Stopped are when it was first worked on and when it was told to stop; zero before.
	Started, Stopped time.Time
	// Message says what the pod waits for or what went wrong; "" when all is well.
	Message    string
	Containers []ContainerStatus
}

// ContainerStatus is how a container is.
type ContainerStatus struct {
	Name    string
	Init    bool
	Running bool
	Ready   bool
	// PID is that of the running process, in the supervisor's process namespace.
	PID      int
	Started  time.Time
	Restarts int
	// Exited is set once it has run; ExitCode is then that of the last run, 128+n when signal n ended it.
	Exited   bool
	ExitCode int
	// Retry: it does not run now and will be started again.
	Retry bool
	// Message says why it does not run or is not ready; "" when all is well.
	Message string
}
