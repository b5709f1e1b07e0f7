package services

// HealthCheck is what a load balancer is told about one Service whose external traffic policy is Local.
type HealthCheck struct {
	Namespace, Name string
	// Port is the node's port at which load balancers ask.
	Port uint16
	// Local counts the pods with a ready endpoint on this node. A dual-stack pod counts once.
	Local int
}

// HealthChecks returns the health checks of all Services that have one, in the order of the Config.
func (t *Table) HealthChecks() []HealthCheck {
	var checks []HealthCheck
	for _, i := range t.checked {
		s := t.config.Services.At(int(i))
		local := map[string]bool{}
		for e := range s.All() {
			// Terminating endpoints do not count, although they still serve: load balancers are to use another node
			// (KEP-1669).
			if e.Node == t.config.Node && (e.Ready || s.PublishNotReady) {
				local[e.ID] = true
			}
		}
		checks = append(checks, HealthCheck{s.Namespace, s.Name, s.HealthCheckNodePort, len(local)})
	}
	return checks
}
