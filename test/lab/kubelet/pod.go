// Package kubelet runs the pods of a lab. It makes a pod's sandbox, starts the commands of its containers there,
// probes, restarts and stops them, and tells about every change at once. It knows neither Kubernetes types nor
// namespaces: its caller supplies the Sandbox.
package kubelet

import (
	"net/netip"
	"time"
)

// Pod is a pod to run, with all references resolved.
type Pod struct {
	Namespace, Name string
	// UID differs for every incarnation of the name.
	UID   string
	Node  string
	Addrs []netip.Addr
	// HostNetwork pods live in their node's namespace.
	HostNetwork bool
	Hostname    string
	// ResolvConf and Hosts are the contents of the two files in /etc.
	ResolvConf, Hosts string
	// The Init containers run one after the other, each to its end. Then the Containers start together.
	Init, Containers []Container
	Restart          RestartPolicy
	// Grace is how long a container may take to end after SIGTERM.
	Grace time.Duration
	// Problem says why the pod cannot be started; "" when there is no problem.
	Problem string
}

// Key returns "namespace/name", which all incarnations of a pod share.
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
	// Readiness and Liveness may be nil. Then a container is ready as soon as it runs, and alive as long as it runs.
	Readiness, Liveness *Probe
}

// Probe says how to check a container. Exactly one of HTTP, TCP and Exec is set.
type Probe struct {
	HTTP *HTTPProbe
	TCP  netip.AddrPort
	Exec []string

	InitialDelay, Period, Timeout time.Duration
	// Success and Failure are how many equal results in a row are needed to change the state.
	Success, Failure int
}

// HTTPProbe is a GET request. A status of 200 to 399 is a success.
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

// Status is the status of a pod. A Status that was handed out does not change.
type Status struct {
	Phase Phase
	// Initialized: every init container has succeeded.
	Initialized bool
	// Ready: every container runs, and its readiness probe succeeds.
	Ready bool
	// Terminating: the pod was told to stop.
	Terminating bool
	// Gone: nothing is left of the pod.
	Gone bool
	// Started is when work on the pod began, and Stopped when the pod was told to stop; zero before.
	Started, Stopped time.Time
	// Message says what the pod waits for or what went wrong; "" when there is nothing to say.
	Message    string
	Containers []ContainerStatus
}

// ContainerStatus is the status of a container.
type ContainerStatus struct {
	Name    string
	Init    bool
	Running bool
	Ready   bool
	// PID is the ID of the running process in the supervisor's PID namespace.
	PID      int
	Started  time.Time
	Restarts int
	// Exited is set once the container has run. ExitCode is then that of the last run; 128+n when signal n ended it.
	Exited   bool
	ExitCode int
	// Retry: the container does not run now and will be started again.
	Retry bool
	// Message says why the container does not run or is not ready; "" when there is nothing to say.
	Message string
}
