cd /tmp/l16
/tmp/venv/bin/python nav.py --dataset chair --out /tmp/q/c16 > /tmp/q/c16.log 2>&1
/tmp/venv/bin/python nav.py --dataset /tmp/q/weizmann4.npz --out /tmp/q/w16 > /tmp/q/w16.log 2>&1
